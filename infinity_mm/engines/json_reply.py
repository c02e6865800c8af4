"""JSON in a reply, by schema: forced by the server where it can, found among other words where it cannot.

text --fences and talk left out--> value --jsonschema--> value | BadJson(why)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from infinity_mm.errors import need

_FENCED = re.compile(r"```[\w-]*\s*\n(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_NO_JSON = (ValueError, RecursionError)
"""The second one for a reply of nothing but brackets."""
_MAX_OPENINGS = 32
"""Places tried; a reply with more brackets than that is no JSON with a little talk around it."""


class BadJson(ValueError):  # noqa: N818 (a fact about a reply)
    """Why a reply holds no value of the schema, in words that a model can act on."""


def parse_json_reply(text: str, schema: str) -> Any:
    """The first value in the text that fits the schema; raises `BadJson`.

    Code fences, talk before and after, and line ends inside strings are forgiven; nothing is guessed: a reply that
    was cut off has no value. `schema` is canonical JSON, as in `Request.schema`.
    """
    problem = "there is no JSON in it"
    for value in _values(text):
        error = next(_validator(schema).iter_errors(value), None)
        if error is None:
            return value
        where = "".join(f"[{step!r}]" for step in error.absolute_path)
        problem = f"{where or 'the value'}: {error.message}"[:300]
    raise BadJson(problem)


def _values(text: str) -> Iterator[Any]:
    """All of it, else what stands in fences, else what begins at a bracket."""
    decoder = json.JSONDecoder(strict=False)
    for piece in (text, *_FENCED.findall(text)):
        try:
            yield decoder.decode(piece.strip())
        except _NO_JSON:
            continue
    end = 0
    for opening in list(_OPENING.finditer(text))[:_MAX_OPENINGS]:
        if opening.start() < end:
            continue  # inside a value that did not fit
        try:
            value, end = decoder.raw_decode(text, opening.start())
        except _NO_JSON:
            continue
        yield value


@lru_cache
def _validator(schema: str) -> Any:
    try:
        import jsonschema
    except ModuleNotFoundError as error:
        raise need("jsonschema", extra="synth", purpose="replies by JSON schema") from error
    return jsonschema.Draft202012Validator(json.loads(schema))
