from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.engines.base import (
    Capabilities,
    Failure,
    ImageReader,
    Likelihood,
    Reply,
    Request,
    Scoring,
    no_likelihoods,
)
from infinity_mm.errors import UserError
from infinity_mm.record import Emitted, ImageRef, ImageSlot, Sample, Tag, Text, Turn, settle
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.taxonomy.label_seeds import below, label_seeds
from infinity_mm.taxonomy.seeds import load_seeds
from infinity_mm.taxonomy.tree import Tree

TREE = Tree.load("default")
KIND = next(path for path in TREE.leaves if path.startswith("fine_cross/")).removeprefix("fine_cross/")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Knows dogs; has no idea of love; fails when it is told to."""

    asked: list[Request] = field(default_factory=list)
    fails: Failure | None = None
    capabilities = Capabilities(images_per_prompt=1, choice_logprobs=False, seeds=True, reproducible="exact")
    fingerprint = "teacher"

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Teacher]:
        yield self

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        self.asked.extend(requests)
        return [self._answer(request) for request in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        return no_likelihoods(scorings)

    def _answer(self, request: Request) -> Reply | Failure:
        if self.fails is not None:
            return self.fails
        if "love" in request.turns[-1].text:
            return Reply(text="none")
        return Reply(text="fine_cross" if "fine_cross" in request.choices else KIND)


ROWS = [
    {"question": "How many dogs are there?", "tags": ["dog"]},
    {"question": "What is love?", "tags": ["heart"]},
    {"question": "How many cats?", "tags": []},
    {"question": "Read the sign.", "tags": ["sign"], "type": "fine_single/text/SIGN text"},
    {"question": "Read it.", "tags": ["sign"], "type": "no such type"},
    {"tags": ["sign"]},
]


def label(source: Path, out: Path, teacher: Teacher, **options: bool) -> dict[str, Any]:
    return asyncio.run(label_seeds(str(source), out, tree=TREE, spec=teacher, **options))


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_questions_get_a_type_in_two_steps_or_are_set_aside_with_the_reason(
    source: Path, tmp_path: Path
) -> None:
    out, teacher = tmp_path / "seeds.jsonl", Teacher()
    found = label(source, out, teacher)
    seeds = load_seeds(str(out), TREE, num_scenes=0)
    assert [(seed.question, seed.type) for seed in seeds] == [
        ("How many dogs are there?", f"fine_cross/{KIND}"),
        ("Read the sign.", "fine_single/text/sign_text"),
    ]
    assert [row["labelled_by"] for row in rows(out)] == ["teacher", "the row"]
    assert found["rejected"] == {"no_type_fits": 1, "no_tags": 1, "unknown_label": 1, "no_question": 1}
    assert [row["reason"] for row in rows(tmp_path / "seeds.rejected.jsonl")] == list(found["rejected"])
    assert [len(request.choices) for request in teacher.asked] == [7, 7, len(below(TREE, "fine_cross")) + 1]


def test_the_same_call_again_asks_nothing_and_writes_the_same(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "seeds.jsonl"
    label(source, out, Teacher())
    first, again = out.read_bytes(), Teacher()
    label(source, out, again)
    assert (out.read_bytes(), again.asked) == (first, [])


def test_a_server_that_is_down_stops_it_and_leaves_no_seeds(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n}?", "tags": ["x"]}) + "\n" for n in range(9)))
    down = Teacher(fails=Failure(reason="http_401", detail="the key has expired"))
    with pytest.raises(UserError, match="9 of 9 calls failed"):
        label(file, tmp_path / "seeds.jsonl", down)
    assert not (tmp_path / "seeds.jsonl").exists()
    odd = Teacher(fails=Failure(reason="not_a_choice", detail="seven"))
    assert label(file, tmp_path / "seeds.jsonl", odd)["rejected"] == {"not_a_choice": 9}


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """Stands for the passes up to `tag`: one image with a conversation."""

    name: str = "tag"

    def fingerprint(self) -> str:
        return "tagged"

    def units(self, run: Run) -> Sequence[Unit]:
        return [Unit(id="00000", payload=None)]

    @asynccontextmanager
    async def open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield self

    async def run(self, unit: Unit) -> UnitResult:
        turns = (
            Turn("user", (ImageSlot(0), Text("\nHow many dogs are there?"))),
            Turn("assistant", (Text("Two."),)),
            Turn("user", (Text("how many dogs are there?"),)),
            Turn("assistant", (Text("Two."),)),
        )
        ref = ImageRef(sha256="a" * 64, uri="/a.png", width=8, height=8)
        sample = Sample(id="a", images=(ref,), turns=turns, tags=(Tag(name="dog", score=0.9),))
        fates = settle("tag", ["a"], [Emitted(sample=sample)])
        return UnitResult(input_ids=["a"], samples=[sample], fates=fates)


def test_the_questions_of_a_run_are_taken_once_with_the_tags_of_their_image(tmp_path: Path) -> None:
    run_passes([Tagged()], Run(str(tmp_path / "run")), LocalExecutor())
    teacher = Teacher()
    found = label(tmp_path / "run", tmp_path / "seeds.jsonl", teacher, show_images=True)
    assert found["seeds"] == 1
    assert rows(tmp_path / "seeds.jsonl")[0]["tags"] == ["dog"]
    assert [len(request.images) for request in teacher.asked] == [1, 1]


def test_a_flat_tree_is_chosen_from_in_one_step(tmp_path: Path) -> None:
    types = [(name, f"{name} it.", [f"{name} this.", f"{name} that."]) for name in ("count", "read")]
    plain = [{"name": n, "definition": d, "examples": e} for n, d, e in types]
    (tmp_path / "flat.yaml").write_text(json.dumps({"name": "flat", "types": plain}))
    assert below(Tree.load(str(tmp_path / "flat.yaml")), "") == {"count": "count it.", "read": "read it."}


def test_the_command_labels_with_the_engine_of_a_file(tmp_path: Path) -> None:
    questions, engine, out = tmp_path / "questions.jsonl", tmp_path / "engine.yaml", tmp_path / "seeds.jsonl"
    questions.write_text(json.dumps({"question": "How many circles are there?", "tags": ["circle"]}) + "\n")
    engine.write_text("{kind: transformers, model: nano-teacher}\n")
    command = [
        "label-seeds",
        str(questions),
        "--out",
        str(out),
        "--engine",
        str(engine),
        "--tree",
        "windtunnel",
    ]
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["seeds"] + sum(found["rejected"].values()) == 1
    assert len(rows(out)) + len(rows(tmp_path / "seeds.rejected.jsonl")) == 1
