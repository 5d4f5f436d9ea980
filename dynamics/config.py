"""Settings as values: load a config file, override its fields, write it as JSON, name it by fingerprint.

A config file is Python with one function, `study()` or `run()`,
that takes no argument and returns a frozen dataclass.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dynamics.errors import UserError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Plain JSON data for a settings value; dataclasses carry their class in the field 'class'."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    raise UserError(
        f"a setting of type {type(value).__name__} cannot be written as JSON, so the run could not be named or resumed; "
        "use numbers, strings, tuples and frozen dataclasses"
    )


def from_plain(data: Any) -> Any:
    """The settings value that `to_plain` wrote; lists come back as tuples. Only classes of this package are built."""
    if isinstance(data, list):
        return tuple(from_plain(item) for item in data)
    if isinstance(data, dict):
        fields = {key: from_plain(item) for key, item in data.items() if key != "class"}
        if "class" not in data:
            return fields
        module, _, name = data["class"].partition(":")
        if module.split(".")[0] != "dynamics":
            raise UserError(
                f"settings name the class {data['class']!r}; only classes of dynamics are read back from JSON"
            )
        kind = getattr(importlib.import_module(module), name, None)
        if kind is None or not dataclasses.is_dataclass(kind):
            raise UserError(f"settings name the class {data['class']!r}, which this version of dynamics does not have")
        known = {field.name for field in dataclasses.fields(kind)}
        for key in fields:
            if key not in known:
                raise UserError(f"{name} has no field {key!r}; known: {', '.join(sorted(known))}")
        return kind(**fields)
    return data


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, so that equal settings give equal text."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def from_json(text: str) -> Any:
    return from_plain(json.loads(text))


def fingerprint(value: Any, *, length: int = 12) -> str:
    """The first hex digits of the SHA-256 of the canonical JSON: the name of a run, a cache, a base model."""
    return hashlib.sha256(to_json(value).encode("utf-8")).hexdigest()[:length]


def load(path: str | Path, *, function: str) -> Any:
    """Run a Python config file and return what its `function()` returns.

    Raises UserError when the file or the function is missing, with the nearest file name as a hint.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        )
        hint = (
            f"; did you mean {path.parent / near[0]}?"
            if near
            else "; give the path of a Python file such as configs/practice.py"
        )
        raise UserError(f"no config file {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"dynamics_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a config ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}; a config file is Python") from error
    make = getattr(module, function, None)
    if make is None:
        offered = [name for name in ("study", "run") if hasattr(module, name)]
        raise UserError(f"{path} has no function {function}(); it has {offered or 'none of study(), run()'}")
    return make()


def override(value: T, assignments: Sequence[str]) -> T:
    """The settings with each `field.field=value` applied; numbers, words and lists of them change, kinds do not.

    >>> override(budget, ["epochs=3"])
    Budget(epochs=3)
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r} has no '='; write --set field=value, such as --set run.rows=16")
        value = _replaced(value, path.strip().split("."), text.strip(), path.strip())
    return value


def _replaced(value: Any, path: list[str], text: str, whole: str) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise UserError(
            f"--set {whole}: {type(value).__name__} {value!r} has no fields; end the path before .{path[0]}"
        )
    fields = {field.name for field in dataclasses.fields(value)}
    if path[0] not in fields:
        near = difflib.get_close_matches(path[0], sorted(fields), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"--set {whole}: {type(value).__name__} has no field {path[0]!r}{hint}; it has {', '.join(sorted(fields))}"
        )
    current = getattr(value, path[0])
    changed = _replaced(current, path[1:], text, whole) if path[1:] else _parsed(current, text, whole)
    return dataclasses.replace(value, **{path[0]: changed})


def _parsed(current: Any, text: str, whole: str) -> Any:
    """The text read as the kind of value that stands there now."""
    if isinstance(current, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"--set {whole}={text}: a claim is true or false")
        return text.lower() == "true"
    if isinstance(current, tuple):
        items = [item.strip() for item in text.strip("()[]").split(",") if item.strip()]
        sample = current[0] if current else ""
        return tuple(_parsed(sample, item, whole) for item in items)
    if isinstance(current, (int, float)):
        kind = type(current)
        try:
            return kind(text)
        except ValueError:
            raise UserError(f"--set {whole}={text}: needs {kind.__name__}, such as {current}") from None
    if isinstance(current, str):
        return text
    if current is None:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    raise UserError(f"--set {whole}: a {type(current).__name__} is chosen in the config file, not on the command line")
