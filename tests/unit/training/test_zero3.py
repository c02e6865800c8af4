"""What is refused before DeepSpeed is asked for anything; tests/integration/ has what it computes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_run import tiny_config

from infinity_mm.errors import UserError
from infinity_mm.training.sft import train
from infinity_mm.training.zero3 import refuse_other_stages

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")


def test_the_shipped_launch_configuration_is_taken() -> None:
    section = yaml.safe_load((ROOT / "configs/accelerate/zero3.yaml").read_text())["deepspeed_config"]
    refuse_other_stages({f"ACCELERATE_DEEPSPEED_{key.upper()}": str(value) for key, value in section.items()})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ZERO_STAGE", "2"),
        ("OFFLOAD_OPTIMIZER_DEVICE", "cpu"),
        ("OFFLOAD_PARAM_DEVICE", "nvme"),
        ("CONFIG_FILE", "a.json"),
    ],
)
def test_another_stage_offload_and_a_configuration_of_deepspeed_are_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name.lower()} is {value}"):
        refuse_other_stages({f"ACCELERATE_DEEPSPEED_{name}": value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "muon"}, "Muon needs whole matrices"),
        ({"compile": True}, "compile and lora.base: nf4 do not work with DeepSpeed"),
        (
            {"model": {"path": "."}, "lora": {"base": "nf4"}},
            "compile and lora.base: nf4 do not work with DeepSpeed",
        ),
    ],
)
def test_what_does_not_go_with_spread_parameters_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(tiny_config(tmp_path, **changes), quiet=True)


def test_without_the_package_the_install_line_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install 'infinity-mm\[deepspeed\]'"):
        train(tiny_config(tmp_path), quiet=True)
