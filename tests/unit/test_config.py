from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from infinity_mm.config import build, load_config, to_plain
from infinity_mm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float
    kind: Literal["wsd", "cosine"] = "wsd"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    inner: Inner
    names: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    limit: int | None = None


GOOD = {"steps": 3, "inner": {"lr": "1e-3"}, "names": ["a"], "weights": {"x": 1}}


def test_a_mapping_becomes_nested_dataclasses_and_text_numbers_are_read() -> None:
    config = build(Outer, GOOD)
    assert config == Outer(steps=3, inner=Inner(lr=0.001), names=("a",), weights={"x": 1.0})


def test_to_plain_is_the_inverse_of_build() -> None:
    config = build(Outer, GOOD)
    assert build(Outer, to_plain(config)) == config


def test_overrides_reach_into_sections() -> None:
    config = build(Outer, GOOD, overrides=["inner.kind=cosine", "limit=5", "names=[b, c]"])
    assert (config.inner.kind, config.limit, config.names) == ("cosine", 5, ("b", "c"))


@pytest.mark.parametrize(
    ("data", "overrides", "message"),
    [
        ({**GOOD, "stepz": 1}, [], "did you mean `steps`"),
        ({**GOOD, "inner": {"lr": 1, "knid": "wsd"}}, [], "did you mean `inner.kind`"),
        ({"inner": {"lr": 1}}, [], "`steps` is required"),
        ({**GOOD, "steps": "many"}, [], "give int"),
        ({**GOOD, "steps": True}, [], "give int"),
        ({**GOOD, "steps": 1.5}, [], "give int"),
        ({**GOOD, "inner": {"lr": 1, "kind": "linear"}}, [], "one of 'wsd', 'cosine'"),
        ({**GOOD, "names": "a"}, [], "give a list"),
        ({**GOOD, "inner": 3}, [], "must be a section"),
        (GOOD, ["steps"], "is not an override"),
        (GOOD, ["steps.x=1"], "is not a section"),
        (GOOD, ["names=[a"], "is not valid YAML"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_fix(
    data: dict[str, object], overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(Outer, data, overrides=overrides)


def test_a_file_that_is_not_there_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("steps: 1\n")
    with pytest.raises(UserError, match=r"did you mean .*tiny\.yaml"):
        load_config(Outer, tmp_path / "tny.yaml")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("steps: 1\nsteps: 2\n")
    with pytest.raises(UserError, match=r"`steps` is given twice"):
        load_config(Outer, file)
