"""What is said about a run before it begins agrees with the run."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from toy_run import model_and_encoder, three_samples, tiny_config

from infinity_mm.data.packing import pack
from infinity_mm.model.flops import model_sizes
from infinity_mm.training.curriculum import Stage
from infinity_mm.training.loss import local_loss
from infinity_mm.training.plan import kept_bytes, plan_stages, preview, print_plan
from infinity_mm.training.sft import train


def test_steps_tokens_and_operations_are_those_of_the_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=None, epochs=2, schedule={"name": "constant"})
    (plan,) = plan_stages([Stage(name="", config=config)], [""])
    result = train(config, quiet=True)
    done = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert plan.steps == result.steps
    assert plan.samples_per_epoch == plan.measured_samples == 24
    assert plan.tokens == pytest.approx(sum(m["tokens"] for m in done), rel=0.1)
    assert plan.flops == pytest.approx(sum(m["flops_per_s"] * m["step_s"] for m in done), rel=0.15)
    assert plan.fill == pytest.approx(sum(m["fill"] for m in done) / len(done), rel=0.1)
    assert plan.gpu_hours["H100"] == pytest.approx(plan.flops / (0.35 * 989e12) / 3600)


def test_memory_counts_every_trained_parameter_and_halves_with_frozen_ones(tmp_path: Path) -> None:
    frozen = {"vision_tower": {"freeze": True}}
    for config in (tiny_config(tmp_path / "a"), tiny_config(tmp_path / "b", **frozen)):
        (plan,) = plan_stages([Stage(name="", config=config)], [""])
        trained = sum(plan.parameters[part] for part in plan.trained)
        assert plan.memory_gb.gradients == pytest.approx(4e-9 * trained)
        assert plan.memory_gb.optimizer == pytest.approx(8e-9 * trained)
        assert plan.memory_gb.weights == pytest.approx(4e-9 * sum(plan.parameters.values()))
        assert plan.memory_gb.sharded_8 < plan.memory_gb.total


def test_the_estimate_of_activations_is_near_what_is_really_kept(tmp_path: Path) -> None:
    model, encoder = model_and_encoder()
    batch = pack([three_samples(encoder)], 256, 3)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = local_loss(model, batch, total_weight=1.0).loss
    real = sum(size for pointer, size in kept.items() if pointer not in parameters)
    shapes = batch.view_shapes
    assert shapes is not None
    assert loss.requires_grad
    estimate = kept_bytes(
        tiny_config(tmp_path),
        model_sizes(model.config),
        positions=256,
        patches=int((shapes[:, 1] * shapes[:, 2]).sum()),
    )
    assert 0.5 < estimate / real < 1.5


def test_a_preview_marks_exactly_what_is_learned(tmp_path: Path) -> None:
    model, encoder = model_and_encoder()
    pieces = preview(pack([three_samples(encoder)], 256, 3), encoder.tokenizer, model.config.image_token_id)
    learned = [text for text, is_learned in pieces if is_learned]
    assert learned == ["a red circle<|im_end|>", "red<|im_end|>"]
    assert any(text.endswith("image tokens>") for text, _ in pieces)


def test_the_json_form_holds_every_stage_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Stage(name="first", config=tiny_config(tmp_path / "first"))
    later = dataclasses.replace(first.config, out_dir=tmp_path / "second")
    stages = [first, Stage(name="second", config=later)]
    print_plan(stages, only="second", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in printed["stages"]] == ["second"]
    assert printed["stages"][0]["steps"] == 6
    print_plan(stages)
    assert "all stages:" in capsys.readouterr().out
