import base64
import io
import json

import pytest
from nano import Drawn
from PIL import Image

from infinity_mm.engines.base import Reply, Request
from infinity_mm.engines.openai_wire import chat_payload, data_uri, read_reply, split_thinking
from infinity_mm.record import ImageSlot, Region, Text, Turn
from infinity_mm.vision.images import BadImage


def encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format_, **options)
    return buffer.getvalue()


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_plain_images_are_sent_as_they_are(format_: str) -> None:
    data = encoded(Image.new("RGB", (30, 20), "red"), format_)
    assert data_uri(data, max_side_px=None) == (
        f"data:image/{format_.lower()};base64,{base64.b64encode(data).decode()}"
    )


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("RGB", (30, 20), "red"), "BMP"),
        encoded(Image.new("RGBA", (30, 20), (0, 0, 0, 0)), "PNG"),
        encoded(Image.new("CMYK", (30, 20)), "JPEG"),
        encoded(Image.new("RGB", (300, 200), "red"), "PNG"),
    ],
    ids=["bmp", "alpha", "cmyk", "large"],
)
def test_what_servers_may_read_differently_is_sent_as_an_rgb_png(data: bytes) -> None:
    picture = decoded(data_uri(data, max_side_px=30))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (30, 20))


def test_a_turned_photograph_is_sent_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decoded(data_uri(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif), max_side_px=None))
    assert (picture.format, picture.size) == ("PNG", (20, 30))


def test_bytes_that_are_no_image_are_refused() -> None:
    with pytest.raises(BadImage):
        data_uri(b"no image", max_side_px=None)


def test_a_conversation_keeps_its_turns_and_parts_in_order() -> None:
    request = Request(
        turns=(
            Turn("system", (Text("be brief"),)),
            Turn("user", (ImageSlot(1), ImageSlot(0), Text("at "), Region(0, (0.5, 0.25)))),
            Turn("assistant", (Text("a circle"),)),
            Turn("user", (Text("why"),)),
        ),
        images=(Drawn().image(0), Drawn().image(1)),
        max_new_tokens=4,
    )
    payload = chat_payload(
        request, ["uri0", "uri1"], model="m", choice_field=None, schema_field=None, extra_body={}
    )
    assert payload["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "uri1"}},
                {"type": "image_url", "image_url": {"url": "uri0"}},
                {"type": "text", "text": "at [500, 250]"},
            ],
        },
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": "why"},
    ]


@pytest.mark.parametrize(
    ("text", "reasoning", "visible"),
    [
        ("<think>hm</think>\n yes ", "hm", "yes"),
        ("<think>cut off", "cut off", ""),
        ("began in the prompt</think>yes", "began in the prompt", "yes"),
        ("<think>a</think>yes<think>b</think>", "a\nb", "yes"),
        ("a < b", "", "a < b"),
    ],
)
def test_thinking_is_kept_apart_from_the_text(text: str, reasoning: str, visible: str) -> None:
    assert split_thinking(text) == (reasoning, visible)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_in_a_field_of_its_own_and_cached_tokens_are_kept(field: str) -> None:
    message = {"content": "three", field: "one, two, three"}
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})
    assert read_reply(body, ()) == Reply(
        text="three", reasoning="one, two, three", prompt_tokens=9, completion_tokens=5, cached_tokens=8
    )


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("7", "7"),
        ("**7**", "7"),
        ("Score: 7", "7"),
        ("10", "10"),
        ("7 or 8", None),
        ("seventeen 17", None),
        ("", None),
    ],
)
def test_a_free_text_names_a_choice_only_when_it_names_one(text: str, choice: str | None) -> None:
    assert chosen(text, ("7", "8", "10")) == choice


SCORES = tuple(str(score) for score in range(1, 11))


def chosen(text: str, choices: tuple[str, ...], *, finish_reason: str = "stop") -> str | None:
    """The choice that is read in a server's reply; None where the reply is refused."""
    body = {"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]}
    reply = read_reply(json.dumps(body), choices)
    return reply.text if isinstance(reply, Reply) else None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("8/10", "8"),
        ("8 out of 10", "8"),
        ("8 of 10.", "8"),
        ("8\u5206", "8"),
        ("\u8bc4\u5206\uff1a8/10\u5206", "8"),
        ("8\u5206\uff08\u6ee1\u520610\u5206\uff09", "8"),
        ("\u4ece1\u523010\uff0c\u6211\u7ed98\u5206", "8"),
        ("Score (1-10): 8", "8"),
        ("Two dogs, not 3. Score: 2", "2"),
        ("8.0", "8"),
        ("10/10", "10"),
        ("-8", None),
        ("\u22128", None),
        ("Score: -8/10", None),
        ("9.9", None),
        ("9,9", None),
        ("9.9/10", None),
        ("80%", None),
        ("7-8", None),
        ("Either 7 or 8", None),
        ("11", None),
    ],
)
def test_a_score_is_read_in_a_servers_words_or_not_at_all(text: str, score: str | None) -> None:
    assert chosen(text, SCORES) == score


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        ("Score: 1", SCORES, None),
        ("8", SCORES, None),
        ("I count 3 dogs, not 4. The", SCORES, None),
        ("1. The answer names", SCORES, None),
        ("Score: 8. The answer", SCORES, "8"),
        ("8/10. The answer", SCORES, "8"),
        ("**8**\n\nThe answer", SCORES, "8"),
        ("Yes, the question is", ("yes", "no"), "yes"),
        ("Yes", ("yes", "no"), None),
    ],
)
def test_in_a_reply_that_was_cut_off_only_what_is_closed_is_a_choice(
    text: str, choices: tuple[str, ...], choice: str | None
) -> None:
    assert chosen(text, choices, finish_reason="length") == choice


def test_a_reply_that_was_cut_says_so() -> None:
    body = '{"choices": [{"message": {"content": "a cir"}, "finish_reason": "length"}]}'
    reply = read_reply(body, ())
    assert (getattr(reply, "text", None), getattr(reply, "finish_reason", None)) == ("a cir", "length")
