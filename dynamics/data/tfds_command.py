"""The command line of tensorflow_datasets, with the same flags: `python -m dynamics.data.tfds_command build ...`.

The `tfds` script of tensorflow-datasets 4.9.10 does not start without tensorflow, apache-beam and mlcroissant, for the
sake of two of its commands; those commands are left out here where a package of theirs is missing.
`--imports dynamics.tfds_datasets` makes our data sets known by name; in the folder of one, no name is needed.
"""

import dataclasses
import importlib.util
import sys
import types

# (command, name of its class, the packages that it needs)
_MORE = (("convert_format", "Args", ("apache_beam", "tensorflow")), ("croissant", "CmdArgs", ("mlcroissant",)))


def main() -> None:
    """Run a command of tensorflow_datasets."""
    for command, name, packages in _MORE:
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            module = types.ModuleType(f"tensorflow_datasets.scripts.cli.{command}")
            setattr(module, name, _command_without(missing[0]))
            sys.modules[module.__name__] = module
    from tensorflow_datasets.scripts.cli import main as command_line

    command_line.launch_cli()


def _command_without(package: str) -> type:
    def execute(self: object) -> None:
        del self
        raise SystemExit(f"this command needs the package {package}, which is not installed here")

    made = dataclasses.make_dataclass("Missing", [], namespace={"execute": execute}, frozen=True, kw_only=True)
    made.__doc__ = f"Needs the package {package}."
    return made


if __name__ == "__main__":
    main()
