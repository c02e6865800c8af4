"""The packing check: every backend that runs is isolated, and the check sees a leak where there is one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.doctor import packing
from infinity_mm.doctor.packing import CONTROL, check_packing, is_isolated, print_packing
from infinity_mm.errors import UserError
from infinity_mm.model import modeling
from infinity_mm.model.attention import packed_attention
from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.tokenizer import build_tokenizer

TINY = ModelSpec(
    vision_hidden=32, vision_layers=1, vision_heads=2, vision_mlp=48, patch_px=4, scale_px=16,
    text_hidden=32, text_layers=1, text_heads=2, text_kv_heads=1, text_mlp=48,
)  # fmt: skip
DENSE = ("eager", "sdpa", "sdpa_float32")


@pytest.fixture(scope="module", params=["uhd", "anyres"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    spec = replace(TINY, views=request.param, connector="mlp")
    model, processor = build_model(spec, build_tokenizer(["The circle is red.\n"] * 4, 300))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_dense_backends_are_isolated_and_the_control_leaks(checkpoint: str) -> None:
    control, *results = check_packing(checkpoint, DENSE)
    assert (control.backend, control.verdict) == (CONTROL, "leaks")
    assert control.leak is not None
    assert control.leak > 1e-3
    assert [(result.backend, result.leak, result.verdict) for result in results] == [
        (backend, 0.0, "isolated") for backend in DENSE
    ]
    assert all(result.change is not None and result.change > 1e-3 for result in results)
    assert is_isolated([control, *results])
    assert not is_isolated([results[0], *results])


def test_a_backend_that_cannot_run_here_says_why(checkpoint: str) -> None:
    (_, result) = check_packing(checkpoint, ["varlen"])
    assert (result.verdict, result.leak) == ("not run", None)
    console = Console(record=True, width=200)
    print_packing([result], console)
    assert "varlen" in (text := console.export_text())
    assert result.reason in text


def test_a_leak_is_found(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(backend: str, sample_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        one_sample = torch.ones_like(sample_ids)
        return packed_attention(backend, one_sample, branch_ids, dtype)

    monkeypatch.setattr(modeling, "packed_attention", forgetful)
    results = check_packing(checkpoint, ["eager"])
    assert results[1].verdict == "leaks"
    assert not is_isolated(results)


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model in"):
        check_packing(str(tmp_path))


def test_the_command_prints_one_object_and_fails_on_a_leak(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        packing, "check_packing", lambda folder, **keys: check_packing(folder, ["sdpa"], **keys)
    )
    done = CliRunner().invoke(app, ["doctor", "--packing", checkpoint, "--json"])
    assert done.exit_code == 0
    results = json.loads(done.stdout)["packing"]
    assert [(one["backend"], one["verdict"]) for one in results] == [(CONTROL, "leaks"), ("sdpa", "isolated")]
    monkeypatch.setattr(packing, "is_isolated", lambda results: False)
    assert CliRunner().invoke(app, ["doctor", "--packing", checkpoint]).exit_code == 1
