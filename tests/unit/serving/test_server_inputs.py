"""What a server asks of processor and model: every image by itself, and images of one shape stacked."""

import pytest
import torch
from small_model import noise, small_model

TALL, WIDE = (40, 90), (90, 40)


def test_asked_for_replacement_offsets_the_processor_keeps_images_apart() -> None:
    _, processor = small_model()
    images = [noise((30, 30)), noise(WIDE)]
    ordinary = processor(images=images, text=["<|image|><|image|>"], return_tensors="pt")
    served = processor(
        images=images, text=["<|image|><|image|>"], return_tensors="pt", return_text_replacement_offsets=True
    )
    shapes = ordinary["view_shapes"]
    assert isinstance(served["view_shapes"], list)
    assert [each.tolist() for each in served["view_shapes"]] == [shapes[:1].tolist(), shapes[1:].tolist()]
    assert torch.equal(served["pixel_values"], ordinary["pixel_values"])
    assert [offset["type"] for offset in served["text_replacement_offsets"][0]] == ["image", "image"]


def test_a_text_without_images_stays_as_it_is() -> None:
    _, processor = small_model()
    served = processor(text=["red"], return_tensors="pt", return_text_replacement_offsets=True)
    assert "view_shapes" not in served


@pytest.mark.parametrize("sizes", [(TALL, TALL), (TALL, WIDE)])
def test_features_of_images_encoded_apart_are_those_of_one_batch(sizes: tuple[tuple[int, int], ...]) -> None:
    model, processor = small_model()
    images = [noise(size) for size in sizes]
    batch = processor.image_processor(images, return_tensors="pt")
    apart = [processor.image_processor(image, return_tensors="pt") for image in images]
    shapes = [each["view_shapes"] for each in apart]
    # vLLM stacks what has one shape, and hands over a list of the rest.
    given = torch.stack(shapes) if shapes[0].shape == shapes[1].shape else shapes
    with torch.no_grad():
        expected = model.get_image_features(**{k: batch[k] for k in ("pixel_values", "view_shapes")})
        found = model.get_image_features(torch.cat([each["pixel_values"] for each in apart]), given)
    assert len(found.pooler_output) == 2
    for one, other in zip(found.pooler_output, expected.pooler_output, strict=True):
        assert torch.equal(one, other)


def test_a_server_that_plans_from_sizes_alone_counts_what_the_processor_makes() -> None:
    _, processor = small_model()
    for size in [(1, 1), (33, 32), TALL, WIDE, (1000, 900)]:
        width, height = size
        counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        made = processor(images=[noise(size)], text=["<|image|>"], return_tensors="pt")
        assert counts.num_image_patches == [made["pixel_values"].shape[0]]
        assert counts.num_image_tokens == [made["input_ids"].shape[1]]
