"""Labels of filters beside the judge's score, on the page and in the trace."""

import io
import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from infinity_mm.record import Sample, Score
from infinity_mm.report.scan import page_row
from infinity_mm.report.trace_print import _calls

PAIR = Sample(id="a.q0.short", images=(), answer="red").with_label("blind", 1).with_label("loss", 0.123456)


def test_the_page_shows_what_was_measured_with_or_without_a_score() -> None:
    judged = replace(PAIR, score=Score(overall=9))
    rows = [json.loads(sample.to_json()) for sample in (PAIR, judged)]
    shown = [page_row(row, "kept", {}, "journeys", text_chars=100)["judged"] for row in rows]
    assert shown == ["blind 1, loss 0.123", "written 9, blind 1, loss 0.123"]


def test_the_trace_prints_a_likelihood_as_one() -> None:
    call: dict[str, Any] = {
        "stage": "loss",
        "model": "m",
        "revision": "unpinned",
        "prompt": "nano/answer_short@1",
        "prompt_text": "Name it.",
        "temperature": 0.0,
        "seed": 0,
        "key": "k",
        "settings": {"role": "scorer", "stage": {}},
        "reply": {"mean_logprob": -0.5, "num_tokens": 3, "prompt_tokens": 40},
        "failures": [],
    }
    console = Console(file=io.StringIO(), width=200)
    _calls([call], console)
    assert isinstance(console.file, io.StringIO)
    assert "-0.500 nats (mean over 3 tokens, after 40 tokens)" in console.file.getvalue()
