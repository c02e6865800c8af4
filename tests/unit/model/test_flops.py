"""The formulas against published arithmetic, and against what torch counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_vlm import TINY, picture, prompt, tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, Qwen2Config, SiglipVisionConfig

from infinity_mm.errors import UserError
from infinity_mm.model.build import build_model
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.flops import (
    Flops,
    ModelSizes,
    forward_flops,
    model_sizes,
    training_flops,
    vision_flops,
)
from infinity_mm.model.schema import num_sequence_tokens
from infinity_mm.vision.slicing import plan_slices

T = 1e12
CLIP_L_336 = SiglipVisionConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, patch_size=14,
    image_size=336,
)  # fmt: skip
SO400M_384 = SiglipVisionConfig(
    hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, intermediate_size=4304, patch_size=14,
    image_size=384,
)  # fmt: skip
VICUNA_13B = LlamaConfig(
    hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, intermediate_size=13824, vocab_size=32000
)
QWEN_1_5B = Qwen2Config(
    hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960,
    vocab_size=151936,
)  # fmt: skip


def sizes(vision: SiglipVisionConfig, text: Qwen2Config | LlamaConfig, connector: str) -> ModelSizes:
    return model_sizes(InfinityMMConfig(vision_config=vision, text_config=text, connector=connector, merge=1))


def prefill(of: ModelSizes, views: list[tuple[int, int]], *, tokens_a_view: int) -> Flops:
    """As papers count a prompt: image tokens only, all logits, no causal saving."""
    tokens = tokens_a_view * len(views)
    return forward_flops(of, views=views, tokens=tokens, labelled=tokens, attended_pairs=tokens**2)


def test_llava_1_5_13b_costs_15_5_trillion() -> None:
    flops = prefill(sizes(CLIP_L_336, VICUNA_13B, "mlp"), [(24, 24)], tokens_a_view=576)
    assert flops.total / T == pytest.approx(15.49, abs=0.01)


@pytest.mark.parametrize(
    ("connector", "queries", "trillions"), [("perceiver", 64, 14.89), ("region_resampler", 144, 30.0)]
)
def test_llava_uhd_13b_with_seven_views(connector: str, queries: int, trillions: float) -> None:
    of = sizes(CLIP_L_336, VICUNA_13B, connector)
    assert of.num_tokens(24, 24) == queries
    assert prefill(of, [(24, 24)] * 7, tokens_a_view=queries).total / T == pytest.approx(trillions, abs=0.06)


def test_siglip_so400m_costs_two_thirds_of_a_trillion_a_view() -> None:
    of = sizes(SO400M_384, QWEN_1_5B, "mlp")
    patch_embedding = 2 * 729 * 588 * 1152
    assert (vision_flops(of.vision, 27, 27) - patch_embedding) / T == pytest.approx(0.665, abs=0.001)
    assert 7 * vision_flops(of.vision, 27, 27) / T == pytest.approx(4.66, abs=0.01)


@pytest.mark.parametrize(("tokens", "trillions"), [(729, 20.2), (196, 4.6), (144, 3.3), (64, 1.4)])
def test_qwen_1_5b_prefills_seven_views(tokens: int, trillions: float) -> None:
    flops = prefill(sizes(SO400M_384, QWEN_1_5B, "mlp"), [(27, 27)] * 7, tokens_a_view=tokens)
    assert (flops.language_model + flops.head) / T == pytest.approx(trillions, abs=0.06)


def test_qwen_1_5b_trains_at_9_3_billion_a_token_of_which_the_head_is_15_percent() -> None:
    flops = forward_flops(
        sizes(SO400M_384, QWEN_1_5B, "mlp"), views=[], tokens=1, labelled=1, attended_pairs=0
    )
    assert training_flops(flops, trained={"language_model"}) / 1e9 == pytest.approx(9.3, abs=0.05)
    assert flops.head / flops.total == pytest.approx(0.15, abs=0.005)


def test_flops_of_many_samples_are_the_sum_of_each() -> None:
    of = sizes(SO400M_384, QWEN_1_5B, "perceiver")
    one = forward_flops(of, views=[(20, 30), (9, 9)], tokens=300, labelled=20, attended_pairs=300**2)
    other = forward_flops(of, views=[(9, 9)], tokens=100, labelled=7, attended_pairs=100**2)
    both = forward_flops(
        of, views=[(20, 30), (9, 9), (9, 9)], tokens=400, labelled=27, attended_pairs=300**2 + 100**2
    )
    assert one + other == both


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ({"vision_tower", "connector", "language_model"}, 3 * 1111),
        ({"connector"}, 1000 + 3 * 100 + 2 * 11 + 4),
        ({"connector", "language_model"}, 1000 + 3 * 111),
        ({"vision_tower"}, 3000 + 2 * 100 + 30 + 2 * 11 + 4),
        ({"language_model"}, 1100 + 3 * 11),
        ((), 1111),
    ],
)
def test_training_costs_three_two_or_one_forward_pass_by_what_is_frozen(
    trained: set[str], expected: int
) -> None:
    flops = Flops(
        vision=1000, connector=100, language_model=10, head=1, connector_attention=30, language_attention=4
    )
    assert training_flops(flops, trained=trained) == expected


def test_a_frozen_part_with_adapters_passes_gradients_on_and_those_before_it_do_not() -> None:
    flops = Flops(
        vision=1000, connector=100, language_model=10, head=1, vision_attention=50, language_attention=4
    )
    assert training_flops(flops, trained=(), adapted={"language_model"}) == 1100 + 2 * 11 + 4
    assert training_flops(flops, trained=(), adapted={"vision_tower"}) == 2050 + 2 * 100 + 2 * 11 + 4


def test_an_unknown_part_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="no part called 'tower'"):
        training_flops(Flops(), trained={"tower"})


def test_a_language_model_without_a_formula_is_named() -> None:
    with pytest.raises(UserError, match="no formula for a gpt2 language model"):
        model_sizes(InfinityMMConfig(text_config={"model_type": "gpt2"}))


FORMS = [
    {"connector": "mlp"},
    {"connector": "pixel_unshuffle_mlp", "merge": 2},
    {"connector": "pixel_unshuffle_mlp", "merge": 4},
    {"connector": "region_resampler", "connector_queries": 9},
    {"connector": "perceiver", "connector_queries": 5},
]


def counted(model: Any, inputs: dict[str, Tensor], *, backward: bool) -> dict[str, int]:
    """Operations that torch counts, by module; torch attributes a backward pass to no module, only to `Global`."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        if backward:
            loss.backward()
    prefix = "InfinityMMForConditionalGeneration."
    return {
        name.removeprefix(prefix): sum(counts.values()) for name, counts in counter.get_flop_counts().items()
    }


def build(form: dict[str, Any]) -> tuple[Any, Any]:
    return build_model(replace(TINY, **form), tokenizer())


def tiny(form: dict[str, Any]) -> tuple[Any, dict[str, Tensor], Flops, list[tuple[int, int]]]:
    """A tiny model, one prompt with two images of one view and five, and what the formulas say."""
    model, processor = build(form)
    pictures = [picture(32, 32), picture(100, 40)]
    inputs = dict(processor(images=pictures, text=[prompt(2)], return_tensors="pt"))
    views = [(rows, columns) for _, rows, columns in inputs["view_shapes"].tolist()]
    tokens = inputs["input_ids"].shape[1]
    flops = forward_flops(
        model_sizes(model.config), views=views, tokens=tokens, labelled=tokens - 1, attended_pairs=tokens**2
    )
    return model.train(), inputs, flops, views


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_formulas_equal_what_torch_counts(form: dict[str, Any]) -> None:
    model, inputs, flops, views = tiny(form)
    assert len(views) > 3
    queries, width = form.get("connector_queries", 0), TINY.text_hidden
    padded = padding_flops(model, views)
    expected = {
        "model.vision_tower": flops.vision + padded,
        "model.connector": flops.connector - (len(views) - 1) * 2 * queries * width**2,  # once a batch
        "model.language_model": flops.language_model,
        "lm_head": flops.head,
    }
    assert counted(model, inputs, backward=False).items() >= expected.items()


def padding_flops(model: Any, views: list[tuple[int, int]]) -> int:
    """What the tower wastes on a batch of unequal views on a CPU; the formulas count useful work."""
    of = model_sizes(model.config)
    longest = max(rows * columns for rows, columns in views)
    embedding = 2 * of.vision.patch_values * of.vision.hidden
    padded = len(views) * (vision_flops(of.vision, longest, 1) - embedding * longest)
    return padded - sum(
        vision_flops(of.vision, rows, columns) - embedding * rows * columns for rows, columns in views
    )


@pytest.mark.parametrize(
    "trained", [("vision_tower", "connector", "lm_head", "language_model"), ("connector",)]
)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_training_formula_counts_one_input_gradient_more_than_torch(
    form: dict[str, Any], trained: tuple[str, ...]
) -> None:
    model, inputs, flops, views = tiny(form)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.removeprefix("model.").startswith(trained))
    of = model_sizes(model.config)
    patches = sum(rows * columns for rows, columns in views)
    if "vision_tower" in trained:
        wasted = 3 * padding_flops(model, views)
        first = 2 * patches * of.vision.patch_values * of.vision.hidden
    else:
        wasted = padding_flops(model, views)
        first = 2 * patches * of.vision.hidden * of.connector_hidden
    once_a_batch = 3 * (len(views) - 1) * 2 * of.connector_queries * of.connector_hidden**2
    expected = training_flops(flops, trained=set(trained) - {"lm_head"}) - first + wasted - once_a_batch
    assert counted(model, inputs, backward=True)["Global"] == expected


def table_of_the_2b_preset() -> list[str]:
    """The rows of docs/model.md: tokens and forward operations of an image of 1, 3 and 7 views, by connector."""
    lines = []
    for name, merge, scale_px in (
        ("mlp", 1, 378),
        ("pixel_unshuffle_mlp", 2, 392),
        ("pixel_unshuffle_mlp", 4, 448),
        ("region_resampler", 1, 378),
        ("perceiver", 1, 378),
    ):
        config = InfinityMMConfig(
            vision_config=SO400M_384, text_config=QWEN_1_5B, connector=name, merge=merge, scale_px=scale_px
        )
        cells = [f"{name}, {merge}x{merge}" if merge > 1 else name, f"{scale_px}/{14 * merge}"]
        for width, height, num_views in ((1, 1, 1), (2, 1, 3), (3, 2, 7)):
            plan = plan_slices(width * scale_px, height * scale_px, config.slice_config())
            assert len(plan.views) == num_views
            tokens = num_sequence_tokens(plan)
            flops = forward_flops(
                model_sizes(config),
                views=plan.view_shapes,
                tokens=tokens,
                labelled=0,
                attended_pairs=tokens**2,
            )
            parts = (flops.vision, flops.connector, flops.language_model)
            cells.append(f"{tokens:,}: " + " + ".join(f"{part / T:.2f}" for part in parts))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def test_the_table_of_the_documentation_is_what_the_formulas_give() -> None:
    page = (Path(__file__).parents[3] / "docs" / "model.md").read_text(encoding="utf-8")
    wanted = table_of_the_2b_preset()
    assert [line for line in wanted if line not in page] == [], "\n" + "\n".join(wanted)
