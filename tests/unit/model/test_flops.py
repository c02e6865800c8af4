"""The formulas against published arithmetic."""

import pytest
from transformers import LlamaConfig, Qwen2Config, SiglipVisionConfig

from infinity_mm.errors import UserError
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.flops import (
    Flops,
    ModelSizes,
    forward_flops,
    model_sizes,
    training_flops,
    vision_flops,
)

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
    assert (vision_flops(of, 27, 27) - patch_embedding) / T == pytest.approx(0.665, abs=0.001)
    assert 7 * vision_flops(of, 27, 27) / T == pytest.approx(4.66, abs=0.01)


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


def test_an_unknown_part_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="no part called 'tower'"):
        training_flops(Flops(), trained={"tower"})


def test_a_language_model_without_a_formula_is_named() -> None:
    with pytest.raises(UserError, match="no formula for a gpt2 language model"):
        model_sizes(InfinityMMConfig(text_config={"model_type": "gpt2"}))
