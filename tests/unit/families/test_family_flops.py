"""The formulas of every stock family against what torch counts, and what they are used for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import NAMES, THREE, config, processor, write_checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from infinity_mm.config import build
from infinity_mm.data.packing import Packed, pack
from infinity_mm.errors import UserError
from infinity_mm.families import FAMILIES
from infinity_mm.model.flops import forward_flops, vision_flops
from infinity_mm.training.config import SftConfig
from infinity_mm.training.curriculum import Stage
from infinity_mm.training.loss import local_loss
from infinity_mm.training.plan import plan_stages
from infinity_mm.training.sft import train

each_family = pytest.mark.parametrize("name", NAMES)
MODULES = {
    "qwen2_5_vl": ("visual", ("visual.merger",)),
    "qwen3_vl": ("visual", ("visual.merger", "visual.deepstack_merger_list.0")),
    "idefics3": ("vision_model", ("connector",)),
    "smolvlm": ("vision_model", ("connector",)),
    "llava_onevision": ("vision_tower", ("multi_modal_projector",)),
    "internvl": ("vision_tower", ("multi_modal_projector",)),
}
"""The tower, which in Qwen holds the connectors, and the connectors."""


def model_and_batch(name: str) -> tuple[Any, Any, Packed]:
    family: Any = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(config(name), attn_implementation="eager")
    encoder = family.encoder(processor(name))
    batch = pack([[encoder.encode(sample, "causal") for sample in THREE]], 256, encoder.pad_id)
    return family, model, batch


@each_family
def test_the_formulas_equal_what_torch_counts(name: str) -> None:
    family, model, batch = model_and_batch(name)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        local_loss(family.trainable(model), batch, total_weight=1.0)
    counts = {key: sum(of.values()) for key, of in counter.get_flop_counts().items()}
    tower, connectors = MODULES[name]
    connector = sum(counts[f"WithLoss.model.model.{module}"] for module in connectors)
    unused = counts.get(
        "WithLoss.model.model.vision_tower.head", 0
    )  # SigLIP's, which released checkpoints leave out
    vision = counts[f"WithLoss.model.model.{tower}"] - (connector if tower == "visual" else 0) - unused
    assert batch.view_shapes is not None
    flops = forward_flops(
        family.sizes(model.config),
        views=[(rows, columns) for _, rows, columns, *_ in batch.view_shapes.tolist()],
        tokens=batch.input_ids.numel(),
        labelled=batch.num_labels,
        attended_pairs=batch.input_ids.numel() ** 2,
    )
    assert (vision, connector) == (flops.vision, flops.connector)
    assert counts["Global"] - unused == flops.total


@each_family
def test_planning_counts_the_same_work_of_the_tower(name: str) -> None:
    family, model, _ = model_and_batch(name)
    cost = family.vision_cost(model.config)
    assert cost(2, 4) == vision_flops(family.sizes(model.config).vision, 2, 4)


def run(folder: Path, name: str) -> SftConfig:
    write_checkpoint(name, folder / name)
    rows = []
    for c in THREE:
        for i, image in enumerate(c.images):
            image.save(folder / f"{c.id}{i}.png")
        texts = [{"from": {"user": "human", "assistant": "gpt"}[m.role], "value": m.text} for m in c.messages]
        rows.append(
            {"id": c.id, "image": [f"{c.id}{i}.png" for i in range(len(c.images))], "conversations": texts}
        )
    (folder / "data.json").write_text(json.dumps(rows))
    options = {"path": str(folder / "data.json"), "image_folder": str(folder)}
    plain: dict[str, Any] = {
        "out_dir": str(folder / "run"), "model": {"path": str(folder / name)},
        "data": [{"kind": "llava_json", "options": options}],
        "row_tokens": 256, "global_batch_rows": 1, "micro_batch_rows": 1, "window": 3, "steps": 2,
        "schedule": {"name": "constant"}, "num_workers": 0, "peak_flops": 1e12,
    }  # fmt: skip
    return build(SftConfig, plain)


@each_family
def test_the_plan_of_a_run_agrees_with_the_run(name: str, tmp_path: Path) -> None:
    config = run(tmp_path, name)
    (plan,) = plan_stages([Stage(name="", config=config)], [""])
    train(config, quiet=True)
    done = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert plan.flops == pytest.approx(sum(m["flops_per_s"] * m["step_s"] for m in done))
    assert plan.tokens == sum(m["tokens"] for m in done)
    assert all(m["mfu"] == pytest.approx(m["flops_per_s"] / 1e12) for m in done)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
    assert sum(plan.parameters.values()) == sum(p.numel() for p in model.parameters())
    learned = "".join(text for text, is_learned in plan.preview if is_learned)
    assert any(c.messages[1].text in learned for c in THREE)
    assert not any(c.messages[0].text in learned for c in THREE)


def test_a_language_model_without_a_formula_is_trained_without_mfu() -> None:
    odd = config("internvl")
    odd.text_config.model_type = "gpt2"
    with pytest.raises(UserError, match="no formula for a gpt2 language model"):
        FAMILIES["internvl"].sizes(odd)
    assert FAMILIES["internvl"].vision_cost(odd)(1, 1) > 0
