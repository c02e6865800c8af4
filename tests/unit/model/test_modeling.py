"""The model: loss, masks, images, training without a cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlm import TINY, model_and_processor, picture, prompt, tokenizer
from torch import Tensor
from torch.nn import functional

from infinity_mm.errors import UserError
from infinity_mm.model.build import build_model
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor


def batch(sizes: list[tuple[int, int]], texts: list[str]) -> dict[str, Tensor]:
    _, processor = model_and_processor()
    pictures = [picture(*size, seed=index) for index, size in enumerate(sizes)]
    return dict(processor(images=pictures or None, text=texts, return_tensors="pt", padding=True))


def text_ids(text: str) -> Tensor:
    return tokenizer()(text, return_tensors="pt")["input_ids"]


def test_changing_pixels_changes_logits() -> None:
    model, _ = model_and_processor()
    inputs = batch([(64, 64)], [prompt(1)])
    with torch.no_grad():
        before = model(**inputs).logits
        inputs["pixel_values"][70] += 1  # one patch of the first slice
        after = model(**inputs).logits
    assert (before[0, -1] - after[0, -1]).abs().max() > 1e-4


def test_precomputed_features_equal_pixels() -> None:
    model, _ = model_and_processor()
    inputs = batch([(64, 64), (20, 30)], [prompt(2)])
    with torch.no_grad():
        expected = model(**inputs).logits
        features = model.get_image_features(
            inputs.pop("pixel_values"), inputs.pop("view_shapes")
        ).pooler_output
        assert [len(feature) for feature in features] == [80, 12]
        assert torch.equal(model(**inputs, image_features=features).logits, expected)


def test_lists_per_image_equal_packed_tensors() -> None:
    model, processor = model_and_processor()
    together = processor.image_processor([picture(64, 64), picture(20, 30)], return_tensors="pt")
    alone = [processor.image_processor(picture(*size), return_tensors="pt") for size in [(64, 64), (20, 30)]]
    with torch.no_grad():
        expected = model.get_image_features(
            together["pixel_values"], together["view_shapes"], return_dict=False
        )
        got = model.get_image_features(
            [one["pixel_values"] for one in alone], [one["view_shapes"] for one in alone], return_dict=False
        )
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def test_counts_of_placeholders_and_features_must_agree() -> None:
    model, _ = model_and_processor()
    inputs = batch([(32, 32)], [prompt(1)])
    cut = {
        name: value[:, 8:] if name in ("input_ids", "attention_mask") else value
        for name, value in inputs.items()
    }
    with pytest.raises(UserError, match=r"text has \d+ image tokens, the images have 16 features"):
        model(**cut)


def test_pixels_need_view_shapes() -> None:
    model, _ = model_and_processor()
    inputs = batch([(32, 32)], [prompt(1)])
    del inputs["view_shapes"]
    with pytest.raises(UserError, match="without view_shapes"):
        model(**inputs)


@pytest.mark.parametrize("num_items", [None, 7])
def test_loss_at_labelled_positions_equals_loss_from_full_logits(num_items: int | None) -> None:
    model, _ = model_and_processor()
    inputs = batch([(64, 64), (30, 20)], [prompt(1), prompt(1, "red?")])
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    labels[1, -2] = -100
    with torch.no_grad():
        out = model(**inputs, labels=labels, num_items_in_batch=num_items)
        logits = model(**inputs).logits
    losses = functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), labels[:, 1:].reshape(-1), reduction="none"
    )
    assert out.logits is None
    assert out.token_losses.shape == (7,)
    assert torch.allclose(out.token_losses, losses[losses > 0], atol=1e-5)
    assert torch.allclose(out.loss, losses.sum() / 7, atol=1e-5)


def test_a_batch_without_labels_has_a_zero_loss_that_can_be_differentiated() -> None:
    model, _ = model_and_processor()
    ids = text_ids("red")
    loss = model(input_ids=ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss.item() == 0


def test_every_weight_gets_a_gradient() -> None:
    model, _ = model_and_processor()
    inputs = batch([(64, 64)], [prompt(1)])
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def packed(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Two rows of ids as one, with a block-diagonal causal mask and restarted positions."""
    lengths = (a.shape[1], b.shape[1])
    segment = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths)])
    mask = (segment[:, None] == segment[None, :]).tril()
    return {
        "input_ids": torch.cat([a, b], 1),
        "attention_mask": mask[None, None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager", "sdpa_float32"])
@pytest.mark.parametrize("training", [False, True])
def test_packed_samples_give_the_logits_of_each_alone(attention: str, training: bool) -> None:
    model, _ = model_and_processor()
    model.set_attn_implementation(attention)
    model.train(training)
    a, b = batch([(64, 64)], [prompt(1)]), batch([(40, 24)], [prompt(1, "The circle is red?")])
    shapes_b = b["view_shapes"] + torch.tensor([1, 0, 0])
    images = {
        "pixel_values": torch.cat([a["pixel_values"], b["pixel_values"]]),
        "view_shapes": torch.cat([a["view_shapes"], shapes_b]),
    }
    with torch.no_grad():
        together = model(**packed(a["input_ids"], b["input_ids"]), **images).logits
        alone = torch.cat([model(**a).logits, model(**b).logits], 1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_changing_one_packed_sample_never_moves_the_other() -> None:
    model, _ = model_and_processor()
    a, b, c = text_ids("The circle is red."), text_ids("What colour?"), text_ids("12 px wide, red")
    with torch.no_grad():
        first = model(**packed(a, b)).logits
        other = model(**packed(a, c)).logits
        swapped = model(**packed(c[:, : a.shape[1]], b)).logits
    length = a.shape[1]
    assert torch.equal(first[:, :length], other[:, :length])
    assert torch.allclose(first[:, length:], swapped[:, -b.shape[1] :], atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_boolean_causal_mask_equals_no_mask(attention: str) -> None:
    model, _ = model_and_processor()
    model.set_attn_implementation(attention)
    ids = text_ids("The circle is red.")
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, model(ids, attention_mask=mask).logits, atol=1e-5)


def cache_flags(model: InfinityMMForConditionalGeneration, **inputs: Any) -> list[bool]:
    flags: list[bool] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: flags.append(kwargs["use_cache"]), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return flags


def test_no_cache_with_labels_nor_in_training_nor_unasked() -> None:
    model, _ = model_and_processor()
    ids = text_ids("red")
    assert model.config.text_config.use_cache
    assert cache_flags(model, input_ids=ids) == [False]
    assert cache_flags(model, input_ids=ids, use_cache=True) == [True]
    assert cache_flags(model, input_ids=ids, labels=ids, use_cache=True) == [False]
    assert cache_flags(model.train(), input_ids=ids, use_cache=True) == [False]


def test_positions_alone_isolate_packed_samples_in_training_mode() -> None:
    # Without a 4-D mask, transformers isolates by restarted positions, but only while no cache exists.
    model, _ = model_and_processor()
    a, b = text_ids("The circle is red."), text_ids("What colour?")
    rows = packed(a, b)
    del rows["attention_mask"]
    with torch.no_grad():
        together = model.train()(**rows).logits
        alone = torch.cat([model(a).logits, model(b).logits], 1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, _ = model_and_processor()
    inputs = batch([(64, 40)], [prompt(1)])
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_float32_attention_equals_sdpa_outside_autocast() -> None:
    model, _ = model_and_processor()
    inputs = batch([(64, 40)], [prompt(1)])
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation("sdpa_float32")
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(model(**inputs).logits.float(), expected, atol=0.3)


def test_other_attention_refuses_a_four_dimensional_mask() -> None:
    model, _ = model_and_processor()
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    ids = text_ids("red")
    with pytest.raises(UserError, match="flash_attention_2"):
        model(ids, attention_mask=torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool))


def test_building_is_deterministic_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    one, _ = build_model(TINY, tokenizer())
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    other, _ = build_model(TINY, tokenizer())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_head_is_the_embedding() -> None:
    model, _ = model_and_processor()
    assert model.lm_head.weight is model.get_input_embeddings().weight


CONNECTOR_FORMS = [
    {"connector": "mlp"},
    {"connector": "pixel_unshuffle_mlp", "merge": 4},
    {"connector": "region_resampler", "connector_queries": 9},
    {"connector": "perceiver", "connector_queries": 5},
]


def with_connector(form: dict[str, Any]) -> tuple[Any, Any]:
    return build_model(replace(TINY, **form), tokenizer())


@pytest.mark.parametrize("form", CONNECTOR_FORMS, ids=str)
def test_with_every_connector_a_batch_of_images_equals_one_at_a_time(form: dict[str, Any]) -> None:
    model, processor = with_connector(form)
    pictures = [picture(64, 64), picture(100, 40, seed=1), picture(64, 64, seed=2)]
    together = processor(images=pictures, text=[prompt(3)], return_tensors="pt")
    assert len(together["view_shapes"].unique(dim=0)) > 3
    with torch.no_grad():
        features = model.get_image_features(
            together["pixel_values"], together["view_shapes"], return_dict=False
        )
        logits = model(**together).logits
        for one, feature in zip(pictures, features, strict=True):
            alone = processor.image_processor(one, return_tensors="pt")
            (expected,) = model.get_image_features(
                alone["pixel_values"], alone["view_shapes"], return_dict=False
            )
            assert torch.allclose(feature, expected, atol=1e-5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("form", CONNECTOR_FORMS, ids=str)
def test_every_connector_survives_saving(form: dict[str, Any], tmp_path: Path) -> None:
    model, processor = with_connector(form)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = InfinityMMForConditionalGeneration.from_pretrained(tmp_path).eval()
    saved: Any = InfinityMMProcessor.from_pretrained(tmp_path)
    inputs = saved(images=[picture(100, 40)], text=[prompt(1)], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)
