from __future__ import annotations

import io
import re
from collections.abc import Iterable
from html.parser import HTMLParser

import pytest
from PIL import Image

from infinity_mm.record import ImageRef
from infinity_mm.trial.collect import AnswerView, End, Picture, QuestionView, funnel
from infinity_mm.trial.inputs import Given
from infinity_mm.trial.page import PageFacts, Shown, render
from infinity_mm.trial.words import REASONS, in_words

EVIL = "<script>alert('x')</script><img src=http://evil/x onerror=alert(1)> & \"quotes\" 'single'"
IMAGE = ImageRef(sha256="ab" * 32, uri="/a.png", width=40, height=30)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def page(
    *questions: QuestionView, data: bytes | None = None, text: str = "plain", unusable: Iterable[str] = ()
) -> str:
    picture = Picture(image=IMAGE, tags=(text,), questions=list(questions), is_worked=True)
    facts = PageFacts(
        title=text, notes=[text], how={text: text}, keep_at=8, rewrite_at=4, next_commands=[text]
    )
    files = [Given(path=path, problem=text, detail=text) for path in unusable]
    return render(facts, [Shown(picture=picture, data=data, paths=[text])], files, funnel([picture]))


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_nothing_that_a_model_a_file_name_or_a_server_says_becomes_markup() -> None:
    end = End(stage=EVIL, reason=EVIL, error=EVIL, is_failure=True)
    answer = AnswerView(style=EVIL, text=EVIL, fate="repaired", score=9, before=f"x {EVIL}", score_before=4)
    html = page(
        QuestionView(type=EVIL, text=EVIL, end=end),
        QuestionView(type="a/b", text=EVIL, answers=[answer]),
        text=EVIL,
        unusable=[EVIL],
        data=png(),
    )
    elements = Elements(html).found
    assert "script" not in {tag for tag, _ in elements}
    sources = [attrs["src"] or "" for tag, attrs in elements if tag == "img"]
    assert [source.partition(",")[0] for source in sources] == ["data:image/jpeg;base64"]
    assert not any(name.startswith("on") for _, attrs in elements for name in attrs)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    elements = Elements(page(data=png())).found
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "form"}
    policy = next(attrs["content"] for tag, attrs in elements if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_repair_shows_what_was_struck_out_and_put_in() -> None:
    answer = AnswerView(
        style="short", text="a blue car", fate="repaired", score=9, before="a red car", score_before=5.5
    )
    html = page(QuestionView(type="a/color", text="Which color?", answers=[answer]))
    assert "a <del>red</del><ins>blue</ins> car" in html
    assert "<span class=score>5.5</span>→ <b class=score>9</b>" in html


def test_a_dropped_question_shows_what_was_written_and_why_it_ended() -> None:
    question = QuestionView(type="a/b", text="NONE", end=End(stage="ask", reason="nothing_to_ask"))
    html = page(question)
    assert "NONE" in html
    assert in_words("nothing_to_ask") in html


def test_a_picture_that_is_gone_or_unreadable_is_said_to_be() -> None:
    assert "the file is gone" in page(data=None)
    assert in_words("not_an_image") in page(data=b"no image at all")


def test_long_texts_and_long_lists_are_folded_and_complete() -> None:
    text = "word " * 200
    answer = AnswerView(style="detailed", text=text, fate="kept", score=9)
    html = page(
        QuestionView(type="a/b", text="?", answers=[answer]), unusable=[f"/f{n}.jpg" for n in range(100)]
    )
    assert html.count("<details>") == 2
    assert text in html
    assert all(f"<td>/f{n}.jpg</td>" in html for n in range(100))


def test_the_funnel_counts_questions_by_how_far_they_came() -> None:
    ends = [End(stage=stage, reason="r") for stage in ("ask", "ask", "distinct", "check")]
    kept = AnswerView(style="short", text="x", fate="kept")
    lost = AnswerView(
        style="brief", text="x", fate="failed", end=End(stage="judge", reason="timeout", is_failure=True)
    )
    questions = [QuestionView(type="t", end=end) for end in ends]
    picture = Picture(
        image=IMAGE, questions=[*questions, QuestionView(type="t", answers=[kept, lost])], is_worked=True
    )
    waiting = Picture(image=IMAGE, questions=[QuestionView(type="t")])
    counts = funnel([picture, waiting])
    assert (counts.pictures, counts.pictures_worked, counts.planned) == (2, 1, 6)
    assert (counts.written, counts.distinct, counts.answerable) == (3, 2, 1)
    assert (counts.answers, counts.kept, counts.repaired) == (2, 1, 0)
    assert counts.dropped == {"ask": {"r": 2}, "distinct": {"r": 1}, "check": {"r": 1}}
    assert counts.failed == {"judge": {"timeout": 1}}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("http_503", "the server answered with an error, HTTP 503"),
        ("score_low", "the score is below the cut-off"),
        ("something_new", "something new"),
    ],
)
def test_reasons_are_words(reason: str, words: str) -> None:
    assert in_words(reason) == words


def test_every_reason_that_stages_give_has_its_words() -> None:
    """The reasons stand as literals in the stages; what is not in the list would be shown as it is."""
    from pathlib import Path

    import infinity_mm.synth
    from infinity_mm.quality import policy, verify

    sources = [
        *Path(infinity_mm.synth.__path__[0]).glob("*.py"),
        Path(policy.__file__),
        Path(verify.__file__),
    ]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    reasons = set(re.findall(r'Rejected\(reason="(\w+)"\)', text))
    reasons |= set(re.findall(r'(?:drop|unreadable)\([^"=)]*"(\w+)"', text))
    reasons |= set(re.findall(r'return "(rewrite_\w+)"', text))
    assert len(reasons) > 20
    assert sorted(reasons - set(REASONS)) == []
