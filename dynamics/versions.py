"""The versions that results depend on; nothing heavy is imported to tell them."""

import platform
from importlib import metadata

import dynamics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy", "scipy")


def versions() -> dict[str, str]:
    """{name: version} of this package, Python and the packages whose change can change a number."""
    found = {"dynamics": dynamics.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
