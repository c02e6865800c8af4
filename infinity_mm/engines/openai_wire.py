"""What is sent to an OpenAI-compatible server, and what its answer means: pure functions.

request, image URIs --chat_payload--> JSON body        JSON body --read_reply--> Reply | Failure
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.engines.named import named_choice
from infinity_mm.engines.prompting import chat_messages, check_shape, sampling_seed
from infinity_mm.record import ImageRef, Turn
from infinity_mm.vision.images import NOTE, decode_image

_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Formats every server reads."""
_ORIENTATION = 0x0112
"""EXIF tag; servers differ in whether they follow it."""
_THINKING = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_CUT_OFF = ("length", "max_tokens", "repetition")
"""What servers say of a reply that they ended themselves."""
_ENDED = (None, "stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls", "function_call")
"""What they say of one that the model ended; anything else ("abort": the server is being stopped) is no reply."""
SchemaField = Literal["response_format", "structured_outputs", "guided_json"]


def data_uri(data: bytes, *, max_side_px: int | None) -> str:
    """An image as a data URI: the original bytes where every server sees the same in them, else an upright PNG.

    The whole image is decoded first, because one broken picture can bring a server down. Raises `BadImage`.
    """
    picture = decode_image(data)
    check_shape(picture)
    with Image.open(io.BytesIO(data)) as header:
        is_plain = (
            header.format in _AS_THEY_ARE
            and header.mode in ("RGB", "L")
            and header.getexif().get(_ORIENTATION, 1) == 1
            and NOTE not in picture.info
            and not header.has_transparency_data
        )
        mime = _AS_THEY_ARE.get(header.format or "", "")
    if max_side_px is not None and max(picture.size) > max_side_px:
        is_plain = False
        picture.thumbnail((max_side_px, max_side_px), Image.Resampling.BICUBIC)
    if not is_plain:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        data, mime = buffer.getvalue(), "image/png"
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def chat_payload(
    request: Request,
    uris: Sequence[str],
    *,
    model: str,
    choice_field: str | None,
    schema_field: SchemaField | None,
    extra_body: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of a chat-completions call; parts keep the request's order, so an image put first stays first."""
    payload: dict[str, Any] = {
        "model": model,
        "messages": wire_messages(request.turns, request.images, uris),
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": sampling_seed(request) >> 32,  # some servers keep seeds in 32 bits
    }
    if request.choices and choice_field == "structured_outputs":
        payload["structured_outputs"] = {"choice": list(request.choices)}
    elif request.choices and choice_field == "guided_choice":
        payload["guided_choice"] = list(request.choices)
    if request.schema is not None and schema_field is not None:
        payload[schema_field] = _forced(json.loads(request.schema), schema_field)
    return payload | dict(extra_body)


def wire_messages(
    turns: Sequence[Turn], images: Sequence[ImageRef], uris: Sequence[str]
) -> list[dict[str, Any]]:
    """Chat messages as the protocol has them; a message without an image is plain text."""
    messages: list[dict[str, Any]] = []
    for message in chat_messages(turns, images):
        parts = [
            {"type": "image_url", "image_url": {"url": uris[part["index"]]}}
            if part["type"] == "image"
            else part
            for part in message["content"]
        ]
        has_image = any(part["type"] == "image_url" for part in parts)
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        messages.append({"role": message["role"], "content": parts if has_image else text})
    return messages


def _forced(schema: Mapping[str, Any], field: SchemaField) -> Mapping[str, Any]:
    """A schema in the words of the server's field for it."""
    if field == "response_format":
        return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
    return {"json": schema} if field == "structured_outputs" else schema


def read_reply(body: str, choices: Sequence[str]) -> Reply | Failure:
    """The reply in a successful response; what the model thought first is kept apart from its text."""
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        message = choice["message"]
        thought, text = split_thinking(message.get("content") or "")
        reasoning = message.get("reasoning") or message.get("reasoning_content") or thought
        usage = data.get("usage") or {}
        reason = choice.get("finish_reason")
        prompt_tokens = int(usage.get("prompt_tokens") or 0)
        completion_tokens = int(usage.get("completion_tokens") or 0)
        cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Failure(
            reason="bad_reply", detail=f"{type(error).__name__}: {error} in {body[:300]!r}", retryable=True
        )
    if reason == "content_filter":
        return Failure(reason="content_filter", detail="the server withheld its reply")
    if reason not in (*_ENDED, *_CUT_OFF):
        return Failure(reason="aborted", detail=f"finish_reason {str(reason)[:100]}", retryable=True)
    if not text:
        has_thought = bool(reasoning or message.get("content"))
        detail = f"{'only reasoning' if has_thought else 'no text'}, finish_reason {reason}"
        return Failure(reason="empty_reply", detail=detail, retryable=not has_thought)
    if choices:
        named = named_choice(text, choices, is_cut_off=reason in _CUT_OFF)
        if named is None:
            cut = ", cut off" if reason in _CUT_OFF else ""
            return Failure(reason="not_a_choice", detail=f"{text[:300]!r}{cut}")
        text = named
    return Reply(
        text=text,
        finish_reason="length" if reason in _CUT_OFF else "stop",
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        reasoning=str(reasoning).strip(),
        cached_tokens=cached_tokens,
    )


def split_thinking(text: str) -> tuple[str, str]:
    """What stands in `<think>` blocks, one that is cut off and one that began in the prompt included, and the rest."""
    blocks = _THINKING.findall(text)
    began_before, _, rest = _THINKING.sub("", text).rpartition("</think>")
    return "\n".join(filter(None, (began_before.strip(), *(block.strip() for block in blocks)))), rest.strip()


def read_error(status: int, body: str) -> Failure:
    """The failure that an error status means."""
    try:
        data = json.loads(body)
        error = data.get("error", data) if isinstance(data, dict) else data
        detail = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        detail = body
    return Failure(
        reason=f"http_{status}",
        detail=detail[:500],
        retryable=status in (408, 409, 425, 429) or status >= 500,
    )
