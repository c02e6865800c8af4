"""A model that cuts images by anyres: features, placeholders, packing, and what a checkpoint keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlm import TINY, picture, prompt, tokenizer

from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.encode import Encoder
from infinity_mm.data.packing import join, pack
from infinity_mm.errors import UserError
from infinity_mm.model.build import build_model
from infinity_mm.model.load import load_model
from infinity_mm.model.schema import num_sequence_tokens
from infinity_mm.model.stitching import stitch
from infinity_mm.vision.plans import plan_image

ANYRES = replace(TINY, views="anyres", merge=1, max_tiles=2)


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    model, processor = build_model(ANYRES, tokenizer())
    return model.eval(), processor


def test_features_equal_the_plan_for_every_image(built: tuple[Any, Any]) -> None:
    model, processor = built
    sizes = [(32, 32), (200, 40), (3, 90), (500, 500)]
    out = processor.image_processor([[picture(*size)] for size in sizes], return_tensors="pt")
    features = model.get_image_features(out["pixel_values"], out["view_shapes"], return_dict=False)
    plans = [plan_image(*size, model.config.view_config()) for size in sizes]
    assert [len(each) for each in features] == [plan.num_tokens for plan in plans]
    assert plans[3].num_tokens == 64 + 11 * 12  # 4x4 tiles of 8x8 shrink to about 2 tiles


def test_a_batch_equals_one_image_at_a_time(built: tuple[Any, Any]) -> None:
    model, processor = built
    samples = [[picture(70, 40)], [picture(20, 50, 1), picture(33, 32, 2)], [picture(150, 150, 3)]]
    out = processor.image_processor(samples, return_tensors="pt")
    together = model.get_image_features(out["pixel_values"], out["view_shapes"], return_dict=False)
    apart = []
    for sample in samples:
        one = processor.image_processor([sample], return_tensors="pt")
        apart += model.get_image_features(one["pixel_values"], one["view_shapes"], return_dict=False)
    assert len(together) == len(apart) == 4
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_every_row_of_the_map_ends_with_the_newline(built: tuple[Any, Any]) -> None:
    model, processor = built
    out = processor.image_processor([picture(64, 32)], return_tensors="pt")
    (features,) = model.get_image_features(out["pixel_values"], out["view_shapes"], return_dict=False)
    newline = model.model.image_newline
    is_newline = (features == newline).all(1)
    assert is_newline.nonzero().flatten().tolist() == [64 + 17 * row + 16 for row in range(8)]


def test_tiles_are_stitched_where_they_lie(built: tuple[Any, Any]) -> None:
    config = built[0].config.anyres_config()
    view_shapes = torch.tensor([[0, 8, 8, 64, 32]] * 3)
    features_KE = torch.arange(3 * 64.0).unsqueeze(1).expand(-1, 4)
    (stitched,) = stitch(features_KE, view_shapes, config, torch.full((4,), -1.0))
    rows = stitched[64:, 0].reshape(8, 17)
    left, right = torch.arange(64.0, 128).reshape(8, 8), torch.arange(128.0, 192).reshape(8, 8)
    assert torch.equal(rows[:, :8], left)
    assert torch.equal(rows[:, 8:16], right)
    assert rows[:, 16].tolist() == [-1.0] * 8


def test_counts_for_a_server_equal_what_the_processor_makes(built: tuple[Any, Any]) -> None:
    _, processor = built
    for size in [(64, 64), (7, 200), (300, 90)]:
        counts = processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])
        out = processor(images=[picture(*size)], text=[processor.image_token], return_tensors="pt")
        assert counts.num_image_tokens == [out["input_ids"].shape[1]]
        assert counts.num_image_patches == [out["pixel_values"].shape[0]]


@pytest.mark.parametrize("sizes", [[(70, 40)], [(70, 40), (20, 90)]])
def test_trainer_and_processor_make_the_same_row(
    built: tuple[Any, Any], sizes: list[tuple[int, int]]
) -> None:
    _, processor = built
    pictures = [picture(*size) for size in sizes]
    question = "What colour is the circle?"
    conversation = Conversation(
        id="a", images=tuple(pictures), messages=(Message("user", question), Message("assistant", "red"))
    )
    encoded = Encoder(processor).encode(conversation, "causal")
    out = processor(images=[pictures], text=[prompt(len(sizes), question)], return_tensors="pt")
    asked = out["input_ids"][0].tolist()
    assert encoded.layout.input_ids[: len(asked)] == asked
    assert encoded.pixel_values is not None
    assert encoded.view_shapes is not None
    assert torch.equal(encoded.pixel_values, out["pixel_values"])
    assert torch.equal(encoded.view_shapes, out["view_shapes"])


def encoded(processor: Any, id_: str, *sizes: tuple[int, int]) -> Any:
    conversation = Conversation(
        id=id_,
        images=tuple(picture(*size) for size in sizes),
        messages=(Message("user", "What is this?"), Message("assistant", f"It is {id_}.")),
    )
    return Encoder(processor).encode(conversation, "causal")


def test_packed_rows_train_every_part_and_equal_separate_rows(built: tuple[Any, Any]) -> None:
    model, processor = built
    samples = [
        encoded(processor, "a", (70, 40)),
        encoded(processor, "b"),
        encoded(processor, "c", (9, 9), (60, 20)),
    ]
    length = max(sum(len(s.layout) for s in samples), 16)
    together = pack([samples], row_tokens=length, pad_id=0)

    def loss(batch: Any) -> Any:
        return model(
            input_ids=batch.input_ids,
            sample_ids=batch.sample_ids,
            branch_ids=batch.branch_ids,
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            view_shapes=batch.view_shapes,
            labels=batch.labels,
        )

    whole = loss(together)
    apart = [loss(pack([[sample]], row_tokens=length, pad_id=0)).token_losses for sample in samples]
    torch.testing.assert_close(whole.token_losses, torch.cat(apart), atol=1e-5, rtol=1e-4)
    whole.loss.backward()
    assert model.model.image_newline.grad.abs().sum() > 0
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_joining_rows_keeps_the_sizes_of_images(built: tuple[Any, Any]) -> None:
    _, processor = built
    rows = [
        pack([[encoded(processor, "a", (70, 40))]], row_tokens=800, pad_id=0),
        pack([[encoded(processor, "b", (9, 30), (8, 8))]], row_tokens=800, pad_id=0),
    ]
    joined = join(rows)
    assert joined.view_shapes is not None
    assert joined.view_shapes[:, 0].tolist() == [0] * 7 + [1, 2]
    assert joined.view_shapes[-1].tolist() == [2, 8, 8, 8, 8]


def test_a_checkpoint_keeps_how_images_are_cut(built: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = built
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load_model(tmp_path)
    assert again.config.view_config() == model.config.view_config()
    assert processor_again.image_processor.view_config() == model.config.view_config()
    assert torch.equal(again.model.image_newline, model.model.image_newline)


def test_views_without_the_images_sizes_are_refused(built: tuple[Any, Any]) -> None:
    model, processor = built
    out = processor.image_processor([picture(64, 32)], return_tensors="pt")
    with pytest.raises(UserError, match="has 3 columns"):
        model.get_image_features(out["pixel_values"], out["view_shapes"][:, :3])


def test_an_anyres_image_has_no_markers(built: tuple[Any, Any]) -> None:
    model, processor = built
    plan = plan_image(70, 40, model.config.view_config())
    assert processor.schema.all == ("<|image|>",)
    assert num_sequence_tokens(plan) == plan.num_tokens


def test_a_connector_that_loses_the_grid_is_refused() -> None:
    with pytest.raises(UserError, match="keeps the grid of patches, perceiver does not"):
        build_model(replace(ANYRES, connector="perceiver"), tokenizer())
