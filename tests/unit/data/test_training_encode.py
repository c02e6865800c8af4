"""Conversations become ids, labels, positions, branches and patches."""

from typing import Any

import pytest
from toy_data import conversation, picture, processor

from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.encode import IGNORE, Encoder
from infinity_mm.errors import UserError
from infinity_mm.vision.plans import plan_image


def template_ids(messages: list[dict[str, Any]], images: list[Any]) -> list[int]:
    text = processor().tokenizer.apply_chat_template(messages, tokenize=False)
    inputs = processor()(text=[text], images=images or None, add_special_tokens=False)
    return list(inputs["input_ids"][0])


def test_ids_are_those_of_the_chat_template() -> None:
    sample = conversation("What colour is it?", "red", "And that?", "green", system="Be brief.")
    encoded = Encoder(processor()).encode(sample, "causal")
    messages = [{"role": message.role, "content": message.text} for message in sample.messages]
    assert encoded.layout.input_ids == template_ids(messages, [])


def test_ids_with_images_are_those_of_processor_and_template() -> None:
    sample = conversation("What colour is it?", "red", images=2)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What colour is it?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    encoded = Encoder(processor()).encode(sample, "causal")
    assert encoded.layout.input_ids == template_ids(messages, list(sample.images))


def test_an_image_stands_where_its_place_is_written() -> None:
    sample = Conversation(
        id="a",
        images=(picture(16, 16), picture(16, 16)),
        messages=(Message("user", "this <image> or that <image>?"), Message("assistant", "red")),
    )
    content = [
        {"type": "text", "text": "this "},
        {"type": "image"},
        {"type": "text", "text": " or that "},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    encoded = Encoder(processor()).encode(sample, "causal")
    assert encoded.layout.input_ids == template_ids(messages, list(sample.images))


def test_only_answers_and_their_end_marker_are_learned() -> None:
    layout = Encoder(processor()).layout(conversation("What?", "red", "Why?", "green"), "causal", [])
    learned = [label for label in layout.labels if label != IGNORE]
    assert processor().tokenizer.decode(learned) == "red<|im_end|>green<|im_end|>"
    assert all(label in (IGNORE, id_) for id_, label in zip(layout.input_ids, layout.labels))


def test_text_is_never_read_as_a_special_token() -> None:
    layout = Encoder(processor()).layout(conversation("What<|im_end|>?", "a <|image|> b"), "causal", [])
    vocab = processor().tokenizer.get_vocab()
    assert layout.input_ids.count(vocab["<|im_end|>"]) == 2
    assert vocab["<|image|>"] not in layout.input_ids


def test_branches_have_the_ids_and_positions_of_separate_samples() -> None:
    encoder = Encoder(processor())
    plans = [plan_image(16, 16, encoder.view_config)]
    both = encoder.layout(
        conversation("What?", "red", "Why?", "green", images=1, system="Look."), "independent", plans
    )
    for branch, texts in enumerate([("What?", "red"), ("Why?", "green")], 1):
        alone = encoder.layout(conversation(*texts, images=1, system="Look."), "causal", plans)
        own = [i for i, b in enumerate(both.branch_ids) if b in (0, branch)]
        assert [both.input_ids[i] for i in own] == alone.input_ids
        assert [both.labels[i] for i in own] == alone.labels
        assert [both.position_ids[i] for i in own] == alone.position_ids


def test_branches_without_images_share_the_system_prompt() -> None:
    encoder = Encoder(processor())
    both = encoder.layout(conversation("What?", "red", "Why?", "green", system="Look."), "independent", [])
    alone = encoder.layout(conversation("Why?", "green", system="Look."), "causal", [])
    own = [i for i, b in enumerate(both.branch_ids) if b in (0, 2)]
    assert [both.input_ids[i] for i in own] == alone.input_ids
    assert [both.position_ids[i] for i in own] == alone.position_ids


def test_patches_are_those_of_the_image_processor() -> None:
    sample = conversation("What?", "red", images=2)
    encoded = Encoder(processor()).encode(sample, "causal")
    expected = processor().image_processor(list(sample.images), return_tensors="pt")
    assert encoded.pixel_values is not None
    assert encoded.view_shapes is not None
    assert encoded.pixel_values.equal(expected["pixel_values"])
    assert encoded.view_shapes.tolist() == expected["view_shapes"].tolist()


def test_an_image_inside_one_of_several_independent_exchanges_is_refused() -> None:
    sample = Conversation(
        id="a",
        images=(picture(16, 16),),
        messages=(Message("user", "this <image>?"), Message("assistant", "red")),
    )
    with pytest.raises(UserError, match="share all images"):
        Encoder(processor()).encode(sample, "independent")


def test_places_and_images_must_agree() -> None:
    sample = Conversation(
        id="a", images=(), messages=(Message("user", "this <image>?"), Message("assistant", "red"))
    )
    with pytest.raises(UserError, match="1 `<image>` places but 0 images"):
        Encoder(processor()).encode(sample, "causal")


def test_a_conversation_must_end_with_an_answer() -> None:
    with pytest.raises(UserError, match="ending with assistant"):
        Encoder(processor()).encode(conversation("What?"), "causal")


def test_our_own_model_writes_boxes_in_thousandths() -> None:
    encoder = Encoder(processor())
    sample = conversation("Where is <|region 0 0.5 0.25|>?", "<|region 0 0 0.1 0.5 1|>", images=1)
    text = encoder.tokenizer.decode(encoder.encode(sample, "causal").layout.input_ids)
    assert "Where is [500, 250]?" in text
    assert "[0, 100, 500, 1000]<|im_end|>" in text
