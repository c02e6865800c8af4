from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.sources.conversations import CAPTION_REQUEST, caption_turns, turns_of
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.sources.tars import released_tags

WORDS = st.sampled_from(
    [
        "from",
        "value",
        "role",
        "content",
        "type",
        "text",
        "image",
        "human",
        "gpt",
        "user",
        "assistant",
        "<image>",
        "?",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@settings(deadline=None, max_examples=200)
@given(
    messages=JSON | st.lists(st.fixed_dictionaries({"from": WORDS, "value": WORDS}), max_size=4),
    num_images=st.integers(0, 2),
    place_images=st.booleans(),
)
def test_a_conversation_is_well_formed_or_refused_whatever_it_holds(
    messages: Any, num_images: int, place_images: bool
) -> None:
    try:
        turns = turns_of(messages, num_images, place_images=place_images)
    except BadRow:
        return
    spoken = [turn.role for turn in turns if turn.role != "system"]
    assert spoken
    assert spoken == ["user", "assistant"] * (len(spoken) // 2)
    slots = [part.index for turn in turns for part in turn.content if isinstance(part, ImageSlot)]
    assert slots == list(range(num_images))
    assert all(turn.text for turn in turns)


@settings(deadline=None)
@given(tags=JSON, scores=JSON)
def test_tags_are_sorted_probabilities_or_none_whatever_they_hold(tags: Any, scores: Any) -> None:
    found = released_tags({"ram++_tags": tags, "ram++_tags_score": scores})
    if found is not None:
        values = [tag.score for tag in found]
        assert values == sorted(values, reverse=True)
        assert all(0 <= value <= 1 for value in values)
        assert len({tag.name for tag in found}) == len(found)
        json.dumps(values, allow_nan=False)


def test_parts_of_chat_messages_say_where_the_images_stand() -> None:
    parts = [
        {"type": "text", "text": "Compare "},
        {"type": "image"},
        {"type": "text", "text": " with "},
        {"type": "image"},
    ]
    turns = turns_of([message("user", parts), message("assistant", "They differ.")], 2)
    assert turns[0].content == (Text("Compare "), ImageSlot(0), Text(" with"), ImageSlot(1))


def test_images_without_a_place_go_first_only_where_that_is_asked_for() -> None:
    talk = [message("system", "Be brief."), message("user", "What?"), message("assistant", "A duck.")]
    turns = turns_of(talk, 2, place_images=True)
    assert turns[1] == Turn("user", (ImageSlot(0), ImageSlot(1), Text("What?")))
    with pytest.raises(BadRow, match="placeholder_mismatch"):
        turns_of(talk, 2)


def test_captions_answer_one_request_each_and_an_empty_one_is_refused() -> None:
    assert [turn.text for turn in caption_turns(["A.", "B."])] == [
        CAPTION_REQUEST,
        "A.",
        CAPTION_REQUEST,
        "B.",
    ]
    with pytest.raises(BadRow, match="empty_turn"):
        caption_turns(["A.", " "])
