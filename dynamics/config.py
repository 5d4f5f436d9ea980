"""Settings as values: load a config file, override its fields, write it as JSON, name it by fingerprint.

A config file is Python with one function, `study()` or `run()`, that takes no argument and returns a frozen dataclass.
"""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
import math
import re
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

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
        f"a setting of type {type(value).__name__} cannot be written as JSON, so the run could not be named; "
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
        kind = _setting(module, name)
        if kind is None:
            raise UserError(f"settings name the class {data['class']!r}, which this version of dynamics does not have")
        known = {field.name for field in dataclasses.fields(kind)}
        for key in fields:
            if key not in known:
                raise UserError(f"{name} has no field {key!r}; known: {', '.join(sorted(known))}")
        try:
            return kind(**fields)
        except TypeError as error:
            raise UserError(f"settings of {name} are not complete: {error}; use the version that wrote them") from error
    return data


def _setting(module: str, name: str) -> Any:
    """The dataclass of this name; None when there is no such module or no such class in it."""
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, so that equal settings give equal text."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def from_json(text: str) -> Any:
    """The settings value that `to_json` wrote."""
    return from_plain(json.loads(text))


def fingerprint(value: Any, *, length: int = 12) -> str:
    """The first hex digits of the SHA-256 of the canonical JSON: the name of a run, a cache, a base model."""
    return hashlib.sha256(to_json(value).encode("utf-8")).hexdigest()[:length]


def load(path: str | Path, *, function: str) -> Any:
    """Run a Python config file and return what its `function()` returns.

    Raises UserError when the file or the function is missing, with the nearest file name as a hint, and when running
    it fails: a config is the user's program, so the message names its line.
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
    _run(path, lambda: spec.loader.exec_module(module))  # pyright: ignore[reportOptionalMemberAccess]
    make = getattr(module, function, None)
    if make is None:
        offered = [name for name in ("study", "run") if hasattr(module, name)]
        raise UserError(f"{path} has no function {function}(); it has {offered or 'none of study(), run()'}")
    return _run(path, make)


def _run(path: Path, program: Callable[[], T]) -> T:
    """What the config's code gives; any failure of it is the user's to mend and named by the line of the file."""
    try:
        return program()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}; a config file is Python") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {type(error).__name__}: {error}; correct the config file") from error


def override(value: T, assignments: Sequence[str]) -> T:
    """The settings with each `field.field=value` applied; numbers, words and lists of them change, kinds do not.

    >>> override(budget, ["epochs=3"])
    Budget(epochs=3)
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(
                f"--set {assignment!r} has no '='; write --set field=value, such as --set run.batch.rows=16"
            )
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
    if path[1:]:
        changed = _replaced(getattr(value, path[0]), path[1:], text, whole)
    else:
        kind = typing.get_type_hints(type(value))[path[0]]
        changed = _parsed(kind, text, f"--set {whole}={text}", getattr(value, path[0]))
    return dataclasses.replace(value, **{path[0]: changed})


def _parsed(kind: Any, text: str, given: str, current: Any) -> Any:
    """The text read as what the field's annotation allows: a number, a claim, a word, none, or a list of them."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    words = [word for one in kinds if typing.get_origin(one) is Literal for word in typing.get_args(one)]
    if text in words:
        return text
    for one in kinds:
        if typing.get_origin(one) is tuple:
            return _list(one, text, given, current)
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    # A whole number stays one where one stands now: 4 and 4.0 would be two names of one run.
    numbers = ([int] if int in kinds or (float in kinds and isinstance(current, int)) else []) + [float]
    for number in numbers if int in kinds or float in kinds else ():
        if (value := _number(number, text)) is not None and (number is int or float in kinds):
            return value
    if str in kinds:
        return text
    needs = [name for type_, name in ((bool, "true or false"), (int, "int"), (float, "float")) if type_ in kinds]
    needs += map(repr, words)
    if not needs:
        what = "this" if current is None else f"a {type(current).__name__}"
        raise UserError(f"{given}: {what} is chosen in the config file, not on the command line")
    such = "" if isinstance(current, bool) or current is None else f", such as {current}"
    raise UserError(f"{given}: needs {' or '.join(needs)}{such}")


def _list(kind: Any, text: str, given: str, current: Any) -> tuple[Any, ...]:
    """'4,16,full' as a tuple; a list of lists is written 'math+code,ethics', as cells are named."""
    item = typing.get_args(kind)[0]
    sample = current[0] if isinstance(current, tuple) and current else None
    texts = [one.strip() for one in text.strip("()[]").split(",") if one.strip()]
    if typing.get_origin(item) is tuple:
        texts = [one.replace("+", ",") for one in texts]
    return tuple(_parsed(item, one, given, sample) for one in texts)


def _number(kind: type, text: str) -> Any:
    """The finite number that the text says; None when it says none."""
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def check_fields(value: Any) -> None:
    """Refuse a settings value one of whose fields is of another kind than its annotation says.

    Call it from `__post_init__` of settings that people write by hand. Raises UserError with class, field and value.
    """
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        given, hint = getattr(value, field.name), hints[field.name]
        if not _fits(given, hint):
            kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise UserError(
                f"{type(value).__name__}({field.name}={given!r}) is a {type(given).__name__}; "
                f"{field.name} takes {re.sub(r'dynamics[.a-z_]*[.]', '', kind)}"
            )


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True
