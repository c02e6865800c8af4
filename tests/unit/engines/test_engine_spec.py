import dataclasses
import pickle
from pathlib import Path

import pytest

from infinity_mm.config import build, load_config
from infinity_mm.engines.base import EngineSpec
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.engines.spec import KINDS, EngineConfig
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.errors import UserError


def test_a_yaml_section_becomes_the_specification_of_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(
        "kind: openai\nbase_url: http://localhost:8000/v1\nmodel: m\nrevision: '1'\nreplicas: [http://b/v1]"
    )
    config = load_config(EngineConfig, file, ["max_in_flight=8"])
    assert config.spec() == OpenAISpec(
        base_url="http://localhost:8000/v1",
        model="m",
        revision="1",
        replicas=("http://b/v1",),
        max_in_flight=8,
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "transformer", "model": "m"}, "did you mean transformers"),
        ({"kind": "tgi"}, "known kinds: transformers, openai, replay, vllm"),
        ({"kind": "transformers"}, "`model` is required"),
        ({"kind": "transformers", "model": "m", "base_url": "http://a"}, "unknown key `base_url`"),
        ({"kind": "transformers", "model": "m", "dtype": "float64"}, "'bfloat16'"),
        ({"kind": "transformers", "model": "m", "max_bach": 4}, "max_batch"),
    ],
)
def test_a_wrong_section_is_an_error_that_helps(data: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        build(EngineConfig, data)
    assert said in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_a_kind_can_be_written_in_the_section(kind: str) -> None:
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    assert {field.name for field in dataclasses.fields(KINDS[kind])} <= known


def test_specifications_travel_to_other_processes() -> None:
    spec = TransformersSpec(model="nano-teacher")
    assert isinstance(spec, EngineSpec)
    assert pickle.loads(pickle.dumps(spec)) == spec
