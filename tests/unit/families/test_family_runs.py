"""Whole runs on checkpoints of every stock family: fully, with adapters, resumed, and read back by stock libraries."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tiny_families import NAMES, THREE, processor, tensors, with_level, write_checkpoint, write_three
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.quantizers.quantizers_utils import should_convert_module

from infinity_mm.config import build
from infinity_mm.data.packing import pack
from infinity_mm.doctor.packing import check_packing, is_isolated
from infinity_mm.errors import UserError
from infinity_mm.families import FAMILIES
from infinity_mm.model.attention import DENSE, FLEX
from infinity_mm.training.config import SftConfig
from infinity_mm.training.lora import quantized, target_layers
from infinity_mm.training.sft import train

each_family = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All checkpoints, and THREE as data in LLaVA's format."""
    root = tmp_path_factory.mktemp("start")
    for name in NAMES:
        write_checkpoint(name, root / name)
    write_three(root)
    return root


def data(start: Path) -> list[dict[str, Any]]:
    return [{"kind": "llava_json", "options": {"path": str(start / "data.json"), "image_folder": str(start)}}]


def run(start: Path, name: str, out: Path, **changes: Any) -> SftConfig:
    """Four steps of one row that holds all three samples."""
    plain: dict[str, Any] = {
        "out_dir": str(out),
        "model": {"path": str(start / name)},
        "data": data(start),
        "row_tokens": 256,
        "global_batch_rows": 1,
        "micro_batch_rows": 1,
        "window": 3,
        "steps": 4,
        "schedule": {"name": "constant"},
        "num_workers": 0,
        "vision_tower": {"lr": 3e-3},
        "connector": {"lr": 3e-3},
        "language_model": {"lr": 3e-3},
        "save_every_steps": 2,
    }
    return build(SftConfig, plain | changes)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@torch.no_grad()
def logits(name: str, model: Any) -> Tensor:
    """Of the sample with two images, by a stock model."""
    family: Any = FAMILIES[name]
    encoder = family.encoder(processor(name))
    batch = pack([[encoder.encode(THREE[1], "causal")]], 128, encoder.pad_id)
    return (
        family.trainable(model)
        .eval()(
            input_ids=batch.input_ids,
            sample_ids=batch.sample_ids,
            branch_ids=batch.branch_ids,
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            view_shapes=batch.view_shapes,
        )
        .logits
    )


def stock(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


@each_family
def test_trains_fully_and_stock_transformers_reads_the_result(
    name: str, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(run(start, name, tmp_path))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 1
    assert f"{name}, packed rows" in capsys.readouterr().out.replace("\n", " ")
    assert result.samples == 12  # all three in every row

    assert result.model_dir is not None
    before, after = tensors(start / name), tensors(result.model_dir)
    assert {key: t.shape for key, t in before.items()} == {key: t.shape for key, t in after.items()}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert len(changed) > 0.8 * len(before)

    model = stock(result.model_dir)
    assert torch.equal(logits(name, model), logits(name, stock(tmp_path / "checkpoint-4")))
    again = AutoProcessor.from_pretrained(result.model_dir)
    assert type(again) is type(processor(name))
    assert (
        FAMILIES[name].encoder(again).encode(THREE[1], "causal").layout
        == FAMILIES[name].encoder(processor(name)).encode(THREE[1], "causal").layout
    )


def test_names_that_transformers_changes_are_given_back(start: Path, tmp_path: Path) -> None:
    released = with_level(start / "llava_onevision", tmp_path / "released")
    result = train(run(tmp_path, "released", tmp_path / "out", data=data(start), steps=1), quiet=True)
    assert result.model_dir is not None
    assert tensors(result.model_dir).keys() == tensors(released).keys()
    wanted = logits("llava_onevision", stock(tmp_path / "out" / "checkpoint-1"))
    assert torch.equal(logits("llava_onevision", stock(result.model_dir)), wanted)


@each_family
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, start: Path, tmp_path: Path) -> None:
    train(run(start, name, tmp_path / "whole", steps=3), quiet=True)
    train(run(start, name, tmp_path / "parts", steps=1), quiet=True)
    train(run(start, name, tmp_path / "parts", steps=3), quiet=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@each_family
def test_frozen_parts_stay_as_they_were(name: str, start: Path, tmp_path: Path) -> None:
    frozen = {"vision_tower": {"freeze": True}, "language_model": {"freeze": True}}
    result = train(run(start, name, tmp_path, steps=1, save_every_steps=9, **frozen), quiet=True)
    assert result.model_dir is not None
    before, after = stock(start / name).state_dict(), stock(result.model_dir).state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith(FAMILIES[name].parts["connector"]) for key in changed)


@each_family
def test_trains_with_adapters_resumes_and_merges(name: str, start: Path, tmp_path: Path) -> None:
    lora = {
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "train_connector": True},
        "language_model": {"lr": 3e-2},
    }
    whole = train(run(start, name, tmp_path / "whole", **lora), quiet=True)
    train(run(start, name, tmp_path / "parts", **lora, steps=2), quiet=True)
    parts = train(run(start, name, tmp_path / "parts", **lora), quiet=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0] - 0.3

    # peft reads the adapters, alone, onto the stock model.
    assert whole.model_dir is not None
    assert parts.model_dir is not None
    assert not list(whole.model_dir.glob("model*.safetensors"))
    adapted = PeftModel.from_pretrained(stock(start / name), whole.model_dir).eval().base_model.model
    wanted = logits(name, adapted)
    assert (wanted - logits(name, stock(start / name))).abs().max() > 0.1

    # The same run with merge: true writes a whole model with the same outputs.
    merge = {"lora": {**lora["lora"], "merge": True}, "language_model": {"lr": 3e-2}}
    merged = train(run(start, name, tmp_path / "merged", **merge), quiet=True).model_dir
    assert merged is not None
    assert tensors(merged).keys() == tensors(start / name).keys()
    assert (logits(name, stock(merged)) - wanted).abs().max() < 1e-4


def test_adapters_sit_where_they_are_asked_for_and_nothing_else_is_trained(
    start: Path, tmp_path: Path
) -> None:
    lora = {"targets": ["vision_tower", "language_model"], "layers": ["q_proj", "qkv"]}
    result = train(run(start, "qwen3_vl", tmp_path, steps=1, lora=lora), quiet=True)
    assert result.model_dir is not None
    with safe_open(result.model_dir / "adapter_model.safetensors", "pt") as file:
        layers = {key.rpartition(".lora_")[0].removeprefix("base_model.model.") for key in file.keys()}  # noqa: SIM118
    assert layers == {
        *(f"model.visual.blocks.{i}.attn.qkv" for i in range(2)),
        *(f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(2)),
    }


def test_a_layer_that_is_not_there_is_refused(start: Path) -> None:
    config = run(start, "smolvlm", start, lora={"layers": ["wq"]}).lora
    assert config is not None
    with pytest.raises(UserError, match="no linear layer of language_model is called wq"):
        target_layers(stock(start / "smolvlm"), FAMILIES["smolvlm"].parts, config)


def test_adapters_alone_are_no_model_to_start_from(start: Path, tmp_path: Path) -> None:
    result = train(run(start, "internvl", tmp_path / "a", steps=1, lora={}), quiet=True)
    with pytest.raises(UserError, match="holds adapters alone"):
        train(run(start, "internvl", tmp_path / "b", model={"path": str(result.model_dir)}), quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {}, "connector": {"freeze": True}}, "with lora everything is frozen but what lora names"),
        (
            {"lora": {"base": "bfloat16", "train_connector": True}},
            "cannot read what a frozen tower in bfloat16",
        ),
        ({"lora": {"targets": []}}, "name at least one part in targets"),
        ({"lora": {"targets": ["connector"], "train_connector": True}}, "in one of the two places"),
    ],
)
def test_adapters_that_contradict_the_rest_are_refused(
    changes: dict[str, Any], message: str, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(start, "smolvlm", tmp_path, **changes)


def test_a_connector_trained_on_a_bfloat16_base_is_float32_and_resumes_exactly(
    start: Path, tmp_path: Path
) -> None:
    changes = {"precision": "bf16", "lora": {"r": 2, "base": "bfloat16", "train_connector": True}, "steps": 3}
    whole = train(run(start, "smolvlm", tmp_path / "whole", **changes), quiet=True).model_dir
    assert whole is not None
    with safe_open(whole / "adapter_model.safetensors", "pt") as file:
        trained = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert any("connector" in key for key in trained)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all((tensor != tensor.bfloat16()).any() for tensor in trained.values())  # and not only by name
    train(run(start, "smolvlm", tmp_path / "parts", **changes | {"steps": 2}), quiet=True)
    train(run(start, "smolvlm", tmp_path / "parts", **changes), quiet=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_four_bits_are_for_the_layers_of_the_language_model_alone() -> None:
    kept = quantized(FAMILIES["qwen3_vl"].parts).llm_int8_skip_modules
    names = ["model.language_model.layers.0.mlp.up_proj", "model.visual.blocks.0.attn.qkv", "lm_head"]
    assert [should_convert_module(name, kept) for name in names] == [True, False, False]


def test_qlora_says_what_it_lacks(start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bitsandbytes|no CUDA device"):
        train(run(start, "smolvlm", tmp_path, lora={"base": "nf4"}), quiet=True)


def test_a_family_without_proof_gets_one_sample_a_row(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FAMILIES["internvl"], "packs", False)
    result = train(run(start, "internvl", tmp_path, steps=3))
    assert result.samples == 3
    assert "one sample a row (packing is not proven for this family)" in capsys.readouterr().out.replace(
        "\n", " "
    )


@each_family
def test_trains_in_bfloat16_with_recomputed_activations(name: str, start: Path, tmp_path: Path) -> None:
    exact = train(run(start, name, tmp_path / "exact", steps=1), quiet=True).loss
    changes = {"precision": "bf16", "gradient_checkpointing": True, "lora": {"base": "bfloat16"}}
    near = train(run(start, name, tmp_path / "near", steps=1, **changes), quiet=True).loss
    assert near == pytest.approx(exact, rel=0.05)


def test_adapters_work_on_our_own_model_too(start: Path, tmp_path: Path) -> None:
    sizes = {
        "vision_hidden": 32, "vision_layers": 1, "vision_heads": 1, "vision_mlp": 32, "patch_px": 8,
        "scale_px": 16, "text_hidden": 32, "text_layers": 1, "text_heads": 1, "text_kv_heads": 1, "text_mlp": 32,
    }  # fmt: skip
    scratch = {"model": {"build": sizes, "tokenizer": {"vocab_size": 300, "num_samples": 3}}}
    ours = train(run(start, "", tmp_path / "ours", **scratch), quiet=True).model_dir
    assert ours is not None
    changes = {"model": {"path": str(ours)}, "lora": {"merge": True}}
    merged = train(run(start, "", tmp_path / "merged", **changes), quiet=True).model_dir
    assert merged is not None
    assert losses(tmp_path / "merged")[-1] < losses(tmp_path / "merged")[0]
    before, after = tensors(ours), tensors(merged)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert before.keys() == after.keys()
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_only_weights_that_can_become_ours_are_converted(start: Path, tmp_path: Path) -> None:
    model = {"path": str(start / "internvl"), "convert": True}
    with pytest.raises(UserError, match="a internvl cannot become our own model"):
        train(run(start, "internvl", tmp_path, model=model), quiet=True)


@each_family
def test_the_doctor_proves_packing_for_the_model_that_is_trained(name: str, start: Path) -> None:
    control, *results = check_packing(str(start / name), [*DENSE, FLEX])
    assert (control.verdict, control.change is not None) == ("leaks", True)
    assert [(one.verdict, one.leak) for one in results[:-1]] == [("isolated", 0.0)] * len(DENSE)
    assert all(one.change is not None and one.change > 0.1 for one in results[:-1])
    assert results[-1].verdict == "not run"
    assert is_isolated([control, *results])


@each_family
def test_is_asked_a_task_between_steps_and_learns_the_same(name: str, start: Path, tmp_path: Path) -> None:
    (source,) = data(start)
    task = {**source, "name": "three", "every_steps": 1, "max_new_tokens": 6, "batch": 2}
    train(run(start, name, tmp_path / "silent", steps=2), quiet=True)
    train(run(start, name, tmp_path / "asked", steps=2, tasks=[task]), quiet=True)
    assert losses(tmp_path / "asked") == losses(tmp_path / "silent")
    before, after = (tmp_path / run / "model" for run in ("silent", "asked"))
    assert {f.name: f.read_bytes() for f in before.iterdir()} == {
        f.name: f.read_bytes() for f in after.iterdir()
    }
    answered = [
        json.loads(line) for line in (tmp_path / "asked" / "evaluation.jsonl").read_text().splitlines()
    ]
    assert [line["id"] for line in answered] == ["one/0", "one/1", "two/0", "none/0"] * 2
    assert [line["problem"] for line in answered] == [None] * 8


def test_a_model_that_has_learned_its_three_samples_answers_them(start: Path, tmp_path: Path) -> None:
    (source,) = data(start)
    task = {**source, "name": "three", "every_steps": 30, "max_new_tokens": 16, "grading": "exact"}
    train(run(start, "qwen3_vl", tmp_path, steps=30, save_every_steps=99, tasks=[task]), quiet=True)
    *_, last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert last["tasks"]["three"]["accuracy"] == 1.0
