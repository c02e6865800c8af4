from __future__ import annotations

from typing import Any

import pytest

from infinity_mm.engines.json_reply import BadJson, parse_json_reply
from infinity_mm.record import canonical_json

SCHEMA = canonical_json(
    {
        "type": "object",
        "properties": {"score": {"type": "integer", "maximum": 10}, "why": {"type": "string"}},
        "required": ["score"],
    }
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"score": 3}', {"score": 3}),
        ('  {"score": 3}\n', {"score": 3}),
        ('```json\n{"score": 3}\n```', {"score": 3}),
        ('Sure! {"score": 3} I hope that helps.', {"score": 3}),
        ('The score [as asked] is {"score": 3}.', {"score": 3}),
        ('{"answer": {"score": 12}} no, {"score": 3}', {"score": 3}),
        ('{"why": "two\nlines", "score": 3}', {"why": "two\nlines", "score": 3}),
    ],
)
def test_the_value_is_found_among_other_words(text: str, value: Any) -> None:
    assert parse_json_reply(text, SCHEMA) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON"),
        ("three", "no JSON"),
        ('{"score": 3', "no JSON"),
        ('{"score": "3"}', r"\['score'\]: '3' is not of type 'integer'"),
        ('{"why": "so"}', "'score' is a required property"),
        ("[" * 5000, "no JSON"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_guessed(text: str, problem: str) -> None:
    with pytest.raises(BadJson, match=problem):
        parse_json_reply(text, SCHEMA)
