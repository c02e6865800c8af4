"""What is said about a run before it begins agrees with the run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy_run import TWO, conversation, model_and_encoder, three_samples, tiny_config

from infinity_mm.data.packing import pack
from infinity_mm.families import INFINITY_MM
from infinity_mm.model import flops
from infinity_mm.model.flops import model_sizes, vision_flops
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.training.config import LoraConfig, PhaseConfig, SftConfig, StartConfig
from infinity_mm.training.curriculum import Stage
from infinity_mm.training.footprint import count_learned, estimate_memory, kept_bytes
from infinity_mm.training.loss import local_loss
from infinity_mm.training.monitor import step_flops
from infinity_mm.training.plan import plan_stages, preview, print_plan
from infinity_mm.training.sft import train
from infinity_mm.training.start import build_mixture, start_model


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
    assert plan.flops is not None
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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to put adapters into."""
    folder = tmp_path_factory.mktemp("base")
    model, encoder = model_and_encoder()
    model.save_pretrained(folder)
    InfinityMMProcessor(encoder.image_processor, encoder.tokenizer).save_pretrained(folder)
    return folder


def on(base: Path, out_dir: Path, **changes: Any) -> SftConfig:
    return dataclasses.replace(tiny_config(out_dir, **changes), model=StartConfig(path=str(base)))


@pytest.mark.parametrize("targets", [("language_model",), ("vision_tower", "language_model")])
def test_with_adapters_exactly_what_the_run_trains_is_counted(
    base: Path, tmp_path: Path, targets: Any
) -> None:
    lora = LoraConfig(r=4, targets=targets, train_connector=True, base="bfloat16")
    config = dataclasses.replace(on(base, tmp_path), lora=lora, precision="bf16")
    (plan,) = plan_stages([Stage(name="", config=config)], [""])
    started = start_model(
        config.model, build_mixture(config.data), lora=dataclasses.replace(lora, base="float32")
    )
    trained = sum(p.numel() for p in started.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model_and_encoder()[0].parameters())
    assert sum(plan.trained_parameters.values()) == trained < whole / 2
    assert sum(plan.parameters.values()) == whole
    assert plan.memory_gb.gradients == pytest.approx(4e-9 * trained)
    assert plan.memory_gb.optimizer == pytest.approx(8e-9 * trained)
    assert plan.memory_gb.weights == pytest.approx(1e-9 * (2 * whole + 6 * trained))


def test_operations_with_adapters_are_those_that_torch_counts(base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=4)
    started = start_model(StartConfig(path=str(base)), build_mixture(tiny_config(tmp_path).data), lora=lora)
    sample = model_and_encoder()[1].encode(conversation(TWO), "causal")
    batch = pack([[sample]], len(sample.layout), 3)
    started.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        local_loss(started.model, batch, total_weight=1.0).loss.backward()
    adapters = {"language_model": sum(p.numel() for p in started.model.parameters() if p.requires_grad)}
    of = model_sizes(started.model.config)
    useful, _ = step_flops(of, [batch], (), adapters)
    # Nobody needs the gradient of the embedding, the input of the first queries, keys and values and their adapters.
    first = 2 * batch.num_tokens * of.text_hidden * (of.text_query + 2 * of.text_key_value + 3 * lora.r)
    blank = vision_flops(of.vision, 2, 2)
    assert counter.get_total_flops() == pytest.approx(useful - first, abs=3 * blank)


def test_muon_keeps_one_moment_for_hidden_matrices_alone(tmp_path: Path) -> None:
    model, _ = model_and_encoder()
    config = tiny_config(tmp_path, optimizer="muon")
    learned = count_learned(INFINITY_MM, model, config)
    state = sum(p.numel() for p in model.parameters()) * 8 - 4 * learned.hidden_matrices
    batch = pack([three_samples(model_and_encoder()[1])], 256, 3)
    memory = estimate_memory(config, model_sizes(model.config), 300, learned, [batch])
    assert memory.optimizer == pytest.approx(1e-9 * state)
    embedding = model.get_input_embeddings().weight.numel()
    assert 0 < learned.hidden_matrices <= sum(learned.trained.values()) - embedding


def test_a_rewind_keeps_weights_and_moments_in_the_memory_of_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, spike={"action": "rewind"})
    (plan,) = plan_stages([Stage(name="", config=config)], [""])
    assert plan.memory_gb.host_rewind == pytest.approx(12e-9 * sum(plan.parameters.values()))
    print_plan([Stage(name="", config=config)])
    assert "GB a process for rewind" in capsys.readouterr().out


def test_weights_by_domain_are_planned_and_the_quarantine_is_obeyed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", index_dir=str(tmp_path / "index"))
    only = dataclasses.replace(config.data[0], domains={"shapes": 0.0})
    (plan,) = plan_stages([Stage(name="", config=dataclasses.replace(config, data=(only,)))], [""])
    outlines = [build_mixture(config.data).outline(0, i) for i in range(24)]
    assert plan.samples_per_epoch == sum(o.domain != "shapes" for o in outlines) < 24
    listed = tmp_path / "quarantine.jsonl"
    listed.write_text(json.dumps({"source": "windtunnel-0", "id": outlines[0].id, "reason": "seen"}))
    (plan,) = plan_stages([Stage(name="", config=dataclasses.replace(config, quarantine=listed))], [""])
    assert plan.dropped == pytest.approx(1 / 24)


def test_a_later_phase_counts_for_its_share_of_the_steps(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    few = dataclasses.replace(config.data[0], options=config.data[0].options | {"exchanges_per_image": 1})
    both = {
        "data": (
            dataclasses.replace(config.data[0], name="two"),
            dataclasses.replace(few, name="one", weight=0.0),
        )
    }

    def tokens(start: int | None) -> float:
        phases = () if start is None else (PhaseConfig(start=start, weights={"two": 0.0, "one": 1.0}),)
        stage = Stage(name="", config=dataclasses.replace(config, **both, mix_by_phase=phases))
        return plan_stages([stage], [""])[0].tokens

    without, two_steps, five_steps = tokens(None), tokens(4), tokens(1)
    assert five_steps < without
    assert (without - two_steps) / (without - five_steps) == pytest.approx(2 / 5)


def test_slices_are_reported_with_their_mean_and_their_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(name="", config=tiny_config(tmp_path))
    (plan,) = plan_stages([stage], [""])
    assert plan.slicing is not None
    assert 0 < plan.slicing.least_area_used <= plan.slicing.area_used <= 1
    assert 1 <= plan.slicing.aspect_error <= plan.slicing.worst_aspect_error
    print_plan([stage])
    assert "of the views' area used" in capsys.readouterr().out


def test_a_model_without_a_formula_is_planned_without_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flops, "GATED", frozenset())
    stage = Stage(name="", config=tiny_config(tmp_path))
    print_plan([stage])
    assert "no formula for this language model" in capsys.readouterr().out
    (plan,) = plan_stages([stage], [""])
    assert (plan.flops, plan.gpu_hours, plan.memory_gb.activations) == (None, {}, None)
    assert plan.steps == 6


def test_the_estimate_of_activations_is_near_what_is_really_kept() -> None:
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
        model_sizes(model.config),
        positions=256,
        patches=int((shapes[:, 1] * shapes[:, 2]).sum()),
        bf16=False,
        checkpointing=False,
        tower_learns=True,
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
