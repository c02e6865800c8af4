"""The page of a run at 10, 1,000 and 100,000 samples: its size, the time and memory to make it, the first paint.

    python benchmarks/report_page.py [--samples 10 1000 100000] [--keep DIR]

The runs are made through the real passes, ledger and storage, with drawn noise for photographs and made-up text for
what a model would say; nothing else about them is special. First paint needs Chromium and is left out without it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from infinity_mm.dedup.images import phash
from infinity_mm.engines.base import Request
from infinity_mm.prompts import PromptSet
from infinity_mm.record import (
    Call,
    Dropped,
    Emitted,
    Fate,
    ImageRef,
    Merged,
    Outcome,
    Quarantined,
    Sample,
    Score,
    Tag,
    settle,
)
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.sources.read_pass import ITEMS_FILE
from infinity_mm.sources.unique_pass import UniquePass
from infinity_mm.storage.journal import Journal
from infinity_mm.storage.shards import jsonl_bytes
from infinity_mm.synth.dedup_pass import DedupPass
from infinity_mm.synth.exchange import prompt_label
from infinity_mm.synth.journey_pass import PAIRS_FILE, set_aside
from infinity_mm.synth.merge import conversation

IMAGES_PER_UNIT = 64
PAIRS_PER_IMAGE = 8
STAGES = ["ask", "check", "styles", "answer", "judge", "decide", "rewrite", "merge"]
TYPES = [f"{a}/{b}" for a in ("ocr", "chart", "coarse", "fine", "reasoning") for b in "abcdefgh"]
NOUNS = [
    "house",
    "dog",
    "river",
    "chart",
    "table",
    "tree",
    "street",
    "number",
    "window",
    "boat",
    "person",
    "shadow",
    "label",
    "clock",
    "bridge",
]
WORDS = [
    "the",
    "a",
    "near",
    "large",
    "small",
    "red",
    "blue",
    "left",
    "right",
    "above",
    "below",
    "of",
    "with",
    "two",
    "three",
    "one",
    "shows",
    "holds",
    "next",
    "to",
]
FOREIGN = [
    "這張圖片顯示一隻狗和一座橋。",
    "\u041d\u0430 \u0444\u043e\u0442\u043e \u0441\u043e\u0431\u0430\u043a\u0430.",
    "写真には犬と橋が写っています。",
]


@dataclass(frozen=True, kw_only=True)
class MadeUpRead:
    """Images of noise and shapes; every hundredth file is broken, every fiftieth a copy."""

    num_images: int
    name: str = "read"

    def fingerprint(self) -> str:
        return str(self.num_images)

    def units(self, run: Run) -> Sequence[Unit]:
        starts = range(0, self.num_images, IMAGES_PER_UNIT)
        return [
            Unit(id=f"{i:05d}", payload=[s, min(s + IMAGES_PER_UNIT, self.num_images)])
            for i, s in enumerate(starts)
        ]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return _open(run, self._work)

    def _work(self, run: Run, unit: Unit, _journal: Journal) -> UnitResult:
        outcomes: list[Outcome] = []
        rows, items = [], []
        for number in range(*unit.payload):
            id_ = hashlib.sha256(f"item{number}".encode()).hexdigest()[:16]
            items.append({"id": id_, "source": "photos", "key": f"2026/{number:07d}.jpg"})
            if number % 100 == 99:
                outcomes.append(Dropped(id=id_, stage="read", reason="truncated"))
                rows.append(
                    {
                        "id": id_,
                        "stage": "read",
                        "reason": "truncated",
                        "source": "photos",
                        "key": items[-1]["key"],
                        "detail": "OSError: image file is truncated",
                        "sample": None,
                    }
                )
                continue
            seed = number - 1 if number % 50 == 49 else number
            data = picture(seed)
            with Image.open(io.BytesIO(data)) as image:
                width, height, hash_ = *image.size, phash(image)
            ref = ImageRef(
                sha256=hashlib.sha256(data).hexdigest(),
                uri=run.store_image(data),
                width=width,
                height=height,
                source="photos",
                licence="CC-BY-4.0",
                phash=hash_,
            )
            outcomes.append(Emitted(sample=Sample(id=id_, images=(ref,))))
        ids = [item["id"] for item in items]
        return UnitResult(
            input_ids=ids,
            samples=[o.sample for o in outcomes if isinstance(o, Emitted)],
            fates=settle("read", ids, outcomes),
            dropped=rows,
            files={ITEMS_FILE: b"".join(json.dumps(item).encode() + b"\n" for item in items)},
        )


@dataclass(frozen=True, kw_only=True)
class MadeUpJourneys:
    """Questions and answers of every fate, with the calls that would have made them in the journal."""

    after: str = "unique"
    name: str = "journeys"

    def fingerprint(self) -> str:
        return "1"

    def units(self, run: Run) -> Sequence[Unit]:
        manifest = run.manifest(self.after)
        assert manifest is not None
        return [Unit(id=unit, payload=None) for unit in manifest.units]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return _open(run, self._work)

    def _work(self, run: Run, unit: Unit, journal: Journal) -> UnitResult:
        images = run.unit_samples(self.after, unit.id)
        results = [made_of(image, journal) for image in images]
        journal.sync()
        dropped = [o for r in results for o in r.outcomes if isinstance(o, Dropped)]
        failed = [o for r in results for o in r.outcomes if isinstance(o, Quarantined)]
        return UnitResult(
            input_ids=[image.id for image in images],
            samples=[sample for r in results for sample in r.conversations],
            fates=[fate for r in results for fate in r.fates],
            dropped=[set_aside(o) for o in dropped],
            quarantined=[set_aside(o) for o in failed],
            metrics={
                f"{kind}.{stage}": n * len(images)
                for stage, n in (("ask", 4), ("answer", 8), ("judge", 8))
                for kind, n in (("calls", n), ("prompt_tokens", 700 * n), ("completion_tokens", 30 * n))
            },
            files={PAIRS_FILE: jsonl_bytes({"id": p.id, "sample": p} for r in results for p in r.pairs)},
        )


@dataclass(kw_only=True)
class _Made:
    outcomes: list[Outcome]
    fates: list[Fate]
    conversations: list[Sample]
    pairs: list[Sample]


def made_of(image: Sample, journal: Journal) -> _Made:
    """Of each image half as many questions as pairs; of each question two pairs."""
    draw = random.Random(image.id)
    image = replace(
        image, tags=tuple(Tag(name=n, score=round(draw.random(), 3)) for n in draw.sample(NOUNS, 4))
    )
    prompts = PromptSet.load("default")
    questions = []
    for number in range(PAIRS_PER_IMAGE // 2):
        type_ = TYPES[min(int(draw.expovariate(0.12)), len(TYPES) - 1)]
        question = (
            f"What {draw.choice(WORDS)} {draw.choice(NOUNS)} {draw.choice(WORDS)} the {draw.choice(NOUNS)}?"
        )
        questions.append(
            replace(
                image,
                id=f"{image.id}.q{number}",
                parents=(image.id,),
                instruction_type=type_,
                question=question,
                examples=("Where is the dog?", "How many boats are there?"),
                calls=(_call("ask", prompts, image, question, journal),),
            )
        )
    fates = settle("spread", [image.id], [Emitted(sample=q) for q in questions])
    outcomes: list[Outcome] = [
        Dropped(id=q.id, stage="check", reason="not_answerable", sample=q)
        if draw.random() < 0.15
        else Emitted(sample=q)
        for q in questions
    ]
    fates += settle("check", [q.id for q in questions], outcomes)
    asked = [o.sample for o in outcomes if isinstance(o, Emitted)]
    pairs = [
        replace(q, id=f"{q.id}.{style}", parents=(q.id,), style=style)
        for q in asked
        for style in ("short", "detailed")
    ]
    fates += settle("styles", [q.id for q in asked], [Emitted(sample=p) for p in pairs])
    ended: list[Outcome] = [_answered(pair, draw, prompts, journal) for pair in pairs]
    fates += settle("rewrite", [p.id for p in pairs], ended)
    kept = [o.sample for o in ended if isinstance(o, Emitted)]
    merged: list[Sample] = [conversation(kept[i::2], i, prompts) for i in range(2) if kept[i::2]]
    into: list[Outcome] = [Emitted(sample=m) for m in merged]
    into += [Merged(id=p.id, stage="merge", into=m.id) for m in merged for p in kept if p.id in m.parents]
    fates += settle("merge", [p.id for p in kept], into)
    return _Made(outcomes=[*outcomes, *ended], fates=fates, conversations=merged, pairs=kept)


def _answered(pair: Sample, draw: random.Random, prompts: PromptSet, journal: Journal) -> Outcome:
    length = 6 if pair.style == "short" else 45
    answer = " ".join(draw.choice(WORDS + NOUNS) for _ in range(draw.randint(2, length))).capitalize() + "."
    answer = draw.choice(FOREIGN) if draw.random() < 0.08 else answer
    value = min(10.0, max(1.0, draw.gauss(7.5, 1.8)))
    calls = (*pair.calls, _call("answer", prompts, pair, answer, journal))
    if draw.random() < 0.01:
        return Quarantined(
            id=pair.id,
            stage="rewrite",
            reason="unreadable_score",
            error="the reply was 'ten or so'",
            sample=replace(pair, answer=answer, calls=calls),
        )
    calls += (_call("judge", prompts, pair, str(round(value)), journal),)
    score = Score(overall=round(value), expected=round(value, 3), uncertainty=round(draw.random(), 3))
    if value < 5:
        dropped = replace(pair, answer=answer, score=score, decision="drop", calls=calls)
        return Dropped(id=pair.id, stage="rewrite", reason="score_low", sample=dropped)
    if value < 7:
        tokens = answer.split(" ")
        tokens[draw.randrange(len(tokens))] = draw.choice(NOUNS)
        better = replace(
            pair,
            answer=" ".join(tokens),
            previous=((answer, score),),
            decision="keep",
            calls=calls,
            score=Score(overall=8, expected=round(value + draw.uniform(0.2, 2.5), 3), uncertainty=0.4),
        )
        if draw.random() < 0.4:
            return Dropped(
                id=pair.id,
                stage="rewrite",
                reason="rewrite_not_better",
                sample=replace(better, decision="drop"),
            )
        return Emitted(sample=better)
    return Emitted(sample=replace(pair, answer=answer, score=score, decision="keep", calls=calls))


def _call(stage: str, prompts: PromptSet, sample: Sample, said: str, journal: Journal) -> Call:
    name = {"ask": "ask", "answer": f"answer_{sample.style}", "judge": "judge"}[stage]
    request = Request(turns=(), images=sample.images, max_new_tokens=64, seed=int(sample.id[:12], 16))
    key = hashlib.sha256(f"{stage}{sample.id}{said}{request.seed}".encode()).hexdigest()
    reply = {
        "text": said,
        "finish_reason": "stop",
        "prompt_tokens": 700,
        "completion_tokens": 30,
        "choice_logprobs": None,
    }
    journal.put(key, reply)
    return Call(
        stage=stage,
        model="qwen2.5-vl-72b@rev-91ab, vllm 0.11.0, bfloat16",
        prompt=prompt_label(prompts, name),
        key=key,
        temperature=0.7 if stage == "ask" else 0.0,
        seed=request.seed,
    )


def picture(seed: int) -> bytes:
    """About a photograph's worth of detail at 480 px: smooth noise with shapes on it."""
    draw = random.Random(seed)
    noise = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    size = draw.choice([(480, 360), (360, 480), (480, 270), (400, 400)])
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, r = draw.randrange(size[0]), draw.randrange(size[1]), draw.randrange(4, 60)
        color = tuple(draw.randrange(256) for _ in range(3))
        pen.ellipse(
            (x - r, y - r, x + r, y + r), fill=color if draw.random() < 0.5 else None, outline=color, width=2
        )
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


@asynccontextmanager
async def _open(run: Run, work: Callable[[Run, Unit, Journal], UnitResult]) -> AsyncIterator[PassWorker]:
    journal = run.journal("made-up")

    class Worker:
        async def run(self, unit: Unit) -> UnitResult:
            return work(run, unit, journal)

    yield Worker()


def make_run(run_dir: Path, num_samples: int) -> Run:
    """A run of about `num_samples` questions and pairs that ended."""
    run = Run(str(run_dir))
    run.start({"name": f"{num_samples:,} samples", "stages": STAGES}, seed=0)
    per_image = PAIRS_PER_IMAGE // 2 * (0.15 + 2 * 0.85)
    num_images = max(2, round(num_samples / per_image / 0.98))
    passes = [MadeUpRead(num_images=num_images), UniquePass(), MadeUpJourneys(), DedupPass()]
    run_passes(passes, run, LocalExecutor())
    return run


def first_paint(page: Path) -> dict[str, float]:
    """Milliseconds by the browser's own performance entries; empty without a browser."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))
    from browser import CHROMIUM, browser  # pyright: ignore[reportMissingImports]

    if CHROMIUM is None:
        return {}

    async def measure() -> dict[str, float]:
        async with browser() as tab:
            await tab.open(page)
            await asyncio.sleep(0.5)
            paint = (
                "Object.fromEntries(performance.getEntriesByType('paint').map(e => [e.name, e.startTime]))"
            )
            load = "performance.getEntriesByType('navigation')[0].loadEventEnd"
            return {**await tab.ask(paint), "load": await tab.ask(load)}

    return asyncio.run(measure())


ONE = """
import json, sys, time
from infinity_mm.report.run_report import write_report
def peak():  # not getrusage, whose figure a child inherits from its parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before, start, cpu = peak(), time.perf_counter(), time.process_time()
report = write_report(sys.argv[1])
made = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
print(json.dumps(report.to_plain() | made | {"peak_mib": peak(), "before_mib": before}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Size, time and memory of the page of a run")
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 1000, 100_000])
    parser.add_argument("--keep", type=Path, help="folder for the runs; they are removed otherwise")
    options = parser.parse_args()
    names = ["samples in run", "on the page", "pictures", "MB", "make, s (CPU)", "peak MiB (imports)"]
    names += ["first paint, ms", "loaded, ms"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    with tempfile.TemporaryDirectory() as scratch:
        for num in options.samples:
            run_dir = (options.keep or Path(scratch)) / f"run{num}"
            start = time.perf_counter()
            make_run(run_dir.absolute(), num)
            print(f"run of {num} made in {time.perf_counter() - start:.0f} s", file=sys.stderr)
            command = [sys.executable, "-c", ONE, str(run_dir.absolute())]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            said = json.loads(done.stdout.splitlines()[-1])
            paint = first_paint(Path(said["path"]))
            shown = [
                f"{paint[k]:.0f}" if k in paint else "no browser" for k in ("first-contentful-paint", "load")
            ]
            made = f"{said['s']:.1f} ({said['cpu_s']:.1f})"
            memory = f"{said['peak_mib']:.0f} ({said['before_mib']:.0f})"
            cells = [f"{said['rows_in_run']:,}", str(said["rows"]), str(said["pictures"])]
            cells += [f"{said['bytes'] / 1e6:.2f}", made, memory, *shown]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
