"""Settings are values: JSON and back is identity, overrides are typed, mistakes are named."""

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics import config
from dynamics.errors import UserError
from dynamics.record import Record, Turn


def record(text: str = "hello", idx: int = 3) -> Record:
    return Record(
        messages=(Turn(role="user", content=text), Turn(role="assistant", content="yes")), ability="math", idx=idx
    )


@given(text=st.text(min_size=1).filter(str.strip), idx=st.integers())
def test_json_and_back_is_identity(text, idx):
    value = record(text, idx)
    assert config.from_json(config.to_json(value)) == value


def test_equal_settings_have_equal_fingerprints_and_others_do_not():
    assert config.fingerprint(record()) == config.fingerprint(record())
    assert config.fingerprint(record()) != config.fingerprint(record(idx=4))


def test_classes_of_other_packages_are_not_built_from_json():
    with pytest.raises(UserError, match="only classes of dynamics"):
        config.from_json('{"class": "subprocess:Popen", "args": "ls"}')


def test_a_function_is_not_a_setting():
    with pytest.raises(UserError, match="cannot be written as JSON"):
        config.to_json({"rule": len})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rows: int = 8
    rate: float = 0.5
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    volumes: tuple[int | Literal["full"], ...] = (1, 4)
    seeds: tuple[int, ...] = ()
    ability_sets: tuple[tuple[str, ...], ...] = ()
    epochs: float | None = 4
    name: str | Inner = "x"
    fast: bool = False


def test_overrides_reach_inner_fields_and_keep_their_type():
    changed = config.override(
        Outer(), ["inner.rows=16", "inner.rate=1", "volumes=2,8,32", "fast=true", "inner.limit=7"]
    )
    assert changed == Outer(inner=Inner(rows=16, rate=1.0, limit=7), volumes=(2, 8, 32), fast=True)
    assert isinstance(changed.inner.rate, float)


def test_overrides_follow_the_annotation_and_not_the_value_that_stands_there():
    changed = config.override(Outer(), ["seeds=0,1", "volumes=4,full", "ability_sets=math+code,ethics", "epochs=0.5"])
    assert changed == Outer(seeds=(0, 1), volumes=(4, "full"), ability_sets=(("math", "code"), ("ethics",)), epochs=0.5)
    assert config.override(Outer(), ["epochs=none", "name=y"]) == Outer(epochs=None, name="y")
    assert config.override(Outer(), ["seeds="]) == Outer()


def test_an_override_to_what_stands_there_keeps_the_fingerprint():
    assert config.fingerprint(config.override(Outer(), ["epochs=4"])) == config.fingerprint(Outer())


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seeds=a", "needs int"),
        ("volumes=4,all", "needs int or 'full', such as 1"),
        ("inner.rate=nan", "needs float, such as 0.5"),
        ("inner.rows=1.5", "needs int, such as 8"),
        ("inner.row=16", "did you mean 'rows'"),
        ("inner.rows=many", "needs int, such as 8"),
        ("inner.rows", "has no '='"),
        ("fast=maybe", "true or false"),
        ("inner.rows.more=1", "has no fields"),
        ("inner=3", "chosen in the config file"),
    ],
)
def test_a_wrong_override_says_what_is_allowed(assignment, message):
    with pytest.raises(UserError, match=message):
        config.override(Outer(), [assignment])


def test_a_field_of_another_kind_is_named_with_what_it_takes():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Checked:
        sizes: tuple[str | Inner, ...] = ()
        volume: int | Literal["full"] = 1
        rate: float = 1.0

        def __post_init__(self):
            config.check_fields(self)

    Checked(sizes=("a", Inner()), volume="full", rate=2)
    for fields, message in (
        ({"sizes": "0.1m"}, r"Checked\(sizes='0.1m'\) is a str; sizes takes tuple"),
        ({"sizes": (1,)}, "sizes takes tuple"),
        ({"volume": "all"}, "volume takes"),
        ({"volume": True}, "is a bool"),
        ({"rate": "fast"}, "rate takes float"),
    ):
        with pytest.raises(UserError, match=message):
            Checked(**fields)


def test_a_missing_config_offers_the_nearest_name(tmp_path):
    (tmp_path / "practice.py").write_text("def study(): return 1\n")
    with pytest.raises(UserError, match=r"did you mean .*practice\.py"):
        config.load(tmp_path / "practise.py", function="study")
    with pytest.raises(UserError, match=r"has no function run\(\)"):
        config.load(tmp_path / "practice.py", function="run")
    assert config.load(tmp_path / "practice.py", function="study") == 1


def test_a_config_that_is_not_python_names_the_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ndef study(:\n")
    with pytest.raises(UserError, match=r"bad\.py:2"):
        config.load(tmp_path / "bad.py", function="study")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import dynamcs\n", r"c\.py:1: ModuleNotFoundError: No module named 'dynamcs'; correct the config file"),
        ("def study():\n    return dict(1, 2)\n", r"c\.py:2: TypeError: .*; correct the config file"),
    ],
)
def test_a_config_that_fails_names_its_line(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(tmp_path / "c.py", function="study")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"class": "dynamics.no.such:Thing"}', "which this version of dynamics does not have"),
        ('{"class": "dynamics.record:parse_record"}', "which this version of dynamics does not have"),
        ('{"class": "dynamics.record:Turn", "rol": "user"}', "Turn has no field 'rol'"),
        ('{"class": "dynamics.record:Turn", "role": "user"}', "Turn are not complete: .*'content'"),
    ],
)
def test_json_of_another_version_is_named(text, message):
    with pytest.raises(UserError, match=message):
        config.from_json(text)
