"""Image processor and processor: everything agrees with the slice plan."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_vlm import TINY, model_and_processor, picture, prompt, tokenizer

from infinity_mm.model.build import build_model
from infinity_mm.model.schema import image_token_ids
from infinity_mm.vision.slicing import plan_slices

SIZES = [(64, 64), (32, 20), (90, 40), (200, 30)]


@pytest.mark.parametrize("size", SIZES)
def test_placeholders_patches_and_plan_agree(size: tuple[int, int]) -> None:
    model, processor = model_and_processor()
    out = processor(images=[picture(*size)], text=[prompt(1)], return_tensors="pt")
    plan = plan_slices(*size, model.config.slice_config())
    assert int((out["input_ids"] == processor.image_token_id).sum()) == plan.num_tokens
    assert out["pixel_values"].shape == (plan.num_patches, 3 * 4 * 4)
    assert out["view_shapes"].tolist() == [[0, rows, columns] for rows, columns in plan.view_shapes]
    schema = image_token_ids(plan, processor.schema_ids)
    ids = out["input_ids"][0].tolist()
    start = ids.index(processor.schema_ids.image_start)
    assert ids[start : start + len(schema)] == schema


def test_processor_returns_only_what_the_model_takes() -> None:
    _, processor = model_and_processor()
    out = processor(images=[picture(32, 32)], text=[prompt(1)], return_tensors="pt")
    assert set(out) == {"input_ids", "attention_mask", "pixel_values", "view_shapes"}


def test_images_are_numbered_across_the_batch() -> None:
    _, processor = model_and_processor()
    pictures = [picture(20, 20), picture(64, 64), picture(20, 20)]
    out = processor(images=pictures, text=[prompt(2), prompt(1)], return_tensors="pt", padding=True)
    assert out["view_shapes"][:, 0].tolist() == [0, 1, 1, 1, 1, 1, 2]


def test_text_alone_needs_no_images() -> None:
    _, processor = model_and_processor()
    assert set(processor(text=["Hi"], return_tensors="pt")) == {"input_ids", "attention_mask"}


def test_chat_template_with_pictures_inside() -> None:
    _, processor = model_and_processor()
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(32, 32)}, {"type": "text", "text": "Hi"}],
        }
    ]
    out = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert int((out["input_ids"] == processor.image_token_id).sum()) == 16
    assert out["pixel_values"].shape == (64, 48)


def test_arrays_and_tensors_give_the_same_patches_as_pictures() -> None:
    _, processor = model_and_processor()
    image = picture(40, 24)
    array = np.asarray(image)
    expected = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    for other in (array, torch.from_numpy(array.copy()).permute(2, 0, 1), array.astype(np.float32) / 255):
        assert torch.equal(processor.image_processor(other, return_tensors="pt")["pixel_values"], expected)


def test_counts_for_a_server_equal_what_the_processor_makes() -> None:
    _, processor = model_and_processor()
    counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in SIZES])
    for index, size in enumerate(SIZES):
        out = processor(images=[picture(*size)], text=[processor.image_token], return_tensors="pt")
        assert counts.num_image_tokens is not None
        assert counts.num_image_patches is not None
        assert counts.num_image_tokens[index] == out["input_ids"].shape[1]
        assert counts.num_image_patches[index] == out["pixel_values"].shape[0]


def test_replacement_offsets_are_returned_on_request() -> None:
    _, processor = model_and_processor()
    out = processor(images=[picture(32, 32)], text=[prompt(1)], return_text_replacement_offsets=True)
    (offsets,) = out["text_replacement_offsets"]
    assert offsets[0]["type"] == "image"
    assert offsets[0]["replacement"].startswith("<|image_start|>")


def test_an_overview_that_comes_last_is_kept_in_the_checkpoint(tmp_path: Path) -> None:
    model, processor = build_model(replace(TINY, overview="last"), tokenizer())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    reloaded: Any = type(processor).from_pretrained(tmp_path)
    _, first = model_and_processor()
    text = [prompt(1)]
    last_out = reloaded(images=[picture(90, 40)], text=text, return_tensors="pt")
    first_out = first(images=[picture(90, 40)], text=text, return_tensors="pt")
    plan = plan_slices(90, 40, again.config.slice_config())
    assert plan.overview == "last"
    at = plan.views[-1].num_patches
    assert torch.equal(last_out["pixel_values"], first_out["pixel_values"].roll(-at, 0))
    assert torch.equal(last_out["view_shapes"], first_out["view_shapes"].roll(-1, 0))
    ids, schema = last_out["input_ids"][0].tolist(), image_token_ids(plan, reloaded.schema_ids)
    start = ids.index(reloaded.schema_ids.image_start)
    assert ids[start : start + len(schema)] == schema
    assert again(**last_out).logits.isfinite().all()
