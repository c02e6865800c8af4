"""Generation: with and without images, in batches, with several outputs, from precomputed features."""

from typing import Any

import torch
from tiny_vlm import model_and_processor, picture, prompt
from torch import Tensor

NEW = 6
CASES = [(1, "What colour is the circle?"), (2, "red?"), (0, "The circle is"), (1, "12")]
PICTURES = [picture(64, 64, 0), picture(30, 20, 1), picture(90, 40, 2), picture(33, 33, 3)]


def generate(model: Any, **inputs: Any) -> Tensor:
    ids = model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    return ids[:, inputs["input_ids"].shape[1] :]


def test_a_left_padded_batch_equals_one_by_one() -> None:
    model, processor = model_and_processor()
    texts = [prompt(count, question) for count, question in CASES]
    together = processor(images=PICTURES, text=texts, return_tensors="pt", padding=True)
    assert (together["attention_mask"] == 0).any()
    got = generate(model, **together)
    start = 0
    for row, (count, _) in enumerate(CASES):
        mine = PICTURES[start : start + count]
        start += count
        alone = processor(images=mine or None, text=[texts[row]], return_tensors="pt")
        assert got[row].tolist() == generate(model, **alone)[0].tolist()


def test_generation_equals_greedy_decoding_without_a_cache() -> None:
    model, processor = model_and_processor()
    inputs = processor(images=PICTURES[:1], text=[prompt(1)], return_tensors="pt")
    got = generate(model, **inputs)
    ids = inputs.pop("input_ids")
    del inputs["attention_mask"]
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(input_ids=ids, **inputs).logits[:, -1]
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert ids[:, -NEW:].tolist() == got.tolist()


def test_precomputed_features_generate_the_same() -> None:
    model, processor = model_and_processor()
    inputs = processor(images=PICTURES[:2], text=[prompt(2)], return_tensors="pt")
    expected = generate(model, **inputs)
    with torch.no_grad():
        features = model.get_image_features(
            inputs.pop("pixel_values"), inputs.pop("view_shapes")
        ).pooler_output
    assert torch.equal(generate(model, **inputs, image_features=features), expected)


def test_images_are_encoded_once_per_call() -> None:
    model, processor = model_and_processor()
    calls: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    generate(model, **processor(images=PICTURES[:1], text=[prompt(1)], return_tensors="pt"))
    assert len(calls) == 1


def test_several_outputs_per_prompt_encode_images_once_and_keep_them_in_order() -> None:
    model, processor = model_and_processor()
    calls: list[int] = []
    inputs = processor(images=PICTURES[:3], text=[prompt(2), prompt(1)], return_tensors="pt", padding=True)
    expected = generate(model, **inputs)
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    sampled = model.generate(
        **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=True, top_k=1, num_return_sequences=2
    )
    assert len(calls) == 1
    assert torch.equal(sampled[:, -NEW:], expected.repeat_interleave(2, 0))


def test_generation_ends_at_the_end_marker() -> None:
    model, processor = model_and_processor()
    assert model.generation_config.eos_token_id[0] == processor.tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
