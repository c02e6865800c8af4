"""What the judge, the loss filter and the blind test are worth, against the truth of drawn scenes.

    python benchmarks/filters.py --images 200 --scorer nano-base --scorer runs/answers_only/model --scorer nano-teacher

The real pipeline asks, answers and labels every pair about held-out scenes; policies are then applied to the labels,
without asking a model again. Prints Markdown. Precision: share of the kept answers that are right. Recall: share of
the right answers that are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infinity_mm.config import load_config
from infinity_mm.engines.base import Likelihood
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.eval.metrics import auc
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.policy import Policy, decide
from infinity_mm.record import Sample
from infinity_mm.runtime.run import Run
from infinity_mm.synth.cap_pass import over_cap
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.journey_pass import read_pairs
from infinity_mm.synth.loss import scoring_of
from infinity_mm.synth.run import run_synthesis
from infinity_mm.windtunnel import truth
from infinity_mm.windtunnel.scoring import scenes_of

STAGES = "[ask, distinct, check, styles, answer, blind, loss, judge, decide, merge]"
ALL = Policy(keep_at=1, rewrite_at=None)
JUDGE_CUT, LOSS_CUT = 8.0, 2.5


@dataclass(frozen=True)
class Graded:
    """A labelled pair, and whether its answer is right."""

    sample: Sample
    right: bool

    @property
    def score(self) -> float:
        value = self.sample.score.value if self.sample.score else None
        assert value is not None
        return value

    @property
    def loss(self) -> float:
        loss = self.sample.label("loss")
        assert loss is not None
        return loss

    @property
    def blind(self) -> bool:
        return self.sample.label("blind") == 1


def labelled(run_dir: str, args: argparse.Namespace) -> tuple[Run, list[Graded]]:
    """Run the pipeline with a policy that keeps all, and grade what it made."""
    source = (
        f"{{kind: windtunnel, num_images: {args.images}, world_seed: {args.world_seed}, split: held_out}}"
    )
    model = f"kind: transformers, threads: {args.threads}"
    overrides = [
        f"run_dir={run_dir}",
        f"read.sources=[{source}]",
        f"stages={STAGES}",
        f"policy={{keep_at: {ALL.keep_at}, rewrite_at: null}}",
        f"engines={{teacher: {{{model}, model: nano-teacher}}, scorer: {{{model}, model: {args.scorer[0]}}}}}",
    ]
    run_synthesis(load_config(SynthConfig, "configs/synth/windtunnel.yaml", overrides))
    run = Run(run_dir)
    scenes, manifest = scenes_of(run), run.manifest("journeys")
    assert manifest is not None
    pairs = [pair for unit in manifest.units for pair in read_pairs(run, "journeys", unit)]
    return run, [Graded(pair, _is_right(pair, scenes)) for pair in pairs]


def _is_right(pair: Sample, scenes: dict[str, truth.Scene]) -> bool:
    scene = scenes[pair.images[0].sha256]
    return truth.grade(scene, pair.question or "", pair.answer or "") == "right"


def by_image(pairs: Sequence[Graded]) -> list[list[Graded]]:
    groups = itertools.groupby(pairs, key=lambda pair: pair.sample.images[0].sha256)
    return [list(group) for _, group in groups]


async def scored_per_s(
    run: Run, pairs: Sequence[Graded], threads: int, *, together: bool, cache_mb: int
) -> float:
    """Answers nano-teacher scores in a second of processor time."""
    prompts = PromptSet.load("nano")
    groups = by_image(pairs) if together else [[pair] for pair in pairs]
    calls = [[scoring_of(pair.sample, prompts) for pair in group] for group in groups]
    spec = TransformersSpec(model="nano-teacher", threads=threads, cache_mb=cache_mb, max_wait_s=0.0)
    async with spec.open(run.images) as engine:
        start = time.process_time()
        for call in calls:
            await engine.score(call)
        return len(pairs) / (time.process_time() - start)


async def rescored(run: Run, pairs: Sequence[Graded], model: str, threads: int) -> list[Graded]:
    """The pairs with the loss of another model, image by image."""
    prompts = PromptSet.load("nano")
    found: list[Graded] = []
    async with TransformersSpec(model=model, threads=threads).open(run.images) as engine:
        for some in by_image(pairs):
            for pair, answer in zip(some, await engine.score([scoring_of(p.sample, prompts) for p in some])):
                assert isinstance(answer, Likelihood)
                found.append(replace(pair, sample=pair.sample.with_label("loss", -answer.mean_logprob)))
    return found


def kept_by(pairs: Sequence[Graded], policy: Policy) -> list[Graded]:
    """What the policy leaves, `cap` included."""
    kept = [pair for pair in pairs if decide(pair.sample, policy).name == "keep"]
    if policy.blind != "cap":
        return kept
    blind: dict[str, list[str]] = defaultdict(list)
    for pair in kept:
        if pair.blind:
            blind[_type(pair)].append(pair.sample.id)
    seeing = Counter(_type(pair) for pair in kept if not pair.blind)
    gone = set(over_cap(blind, seeing, policy.max_blind_share))
    return [pair for pair in kept if pair.sample.id not in gone]


def _type(pair: Graded) -> str:
    return pair.sample.instruction_type or ""


def table(*columns: str) -> None:
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def policy_row(name: str, pairs: Sequence[Graded], policy: Policy) -> None:
    kept = kept_by(pairs, policy)
    right, all_right = sum(pair.right for pair in kept), sum(pair.right for pair in pairs)
    blind = sum(pair.blind for pair in kept)
    row(
        name,
        percent(len(kept), len(pairs)),
        percent(right, len(kept)),
        percent(right, all_right),
        percent(blind, len(kept)),
    )


def area(pairs: Sequence[Graded], value: str, sign: int = 1) -> str:
    sides = ([sign * float(getattr(p, value)) for p in pairs if p.right is side] for side in (True, False))
    found = auc(*sides)
    return "-" if found is None else f"{found:.3f}"


def cut_at_recall(pairs: Sequence[Graded], recall: float) -> float:
    """A loss, in four digits, at or below which this share of the right answers lies."""
    losses = sorted(pair.loss for pair in pairs if pair.right)
    return float(f"{losses[min(len(losses) - 1, max(0, math.ceil(recall * len(losses)) - 1))] * 1.0005:.4g}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--world-seed", type=int, default=11)
    parser.add_argument("--scorer", action="append", help="model whose loss is measured; may be given again")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run-dir", help="keep the run here; default: a temporary folder")
    args = parser.parse_args()
    args.scorer = args.scorer or ["nano-base"]
    with tempfile.TemporaryDirectory() as folder:
        run, pairs = labelled(args.run_dir or folder, args)
        by_scorer = {Path(args.scorer[0]).name: pairs}
        for model in args.scorer[1:]:
            by_scorer[Path(model).name] = asyncio.run(rescored(run, pairs, model, args.threads))
        report(by_scorer)
        table("nano-teacher scores", "answers per CPU second")
        for name, together, cache_mb in (
            ("all answers of an image in one call", True, 512),
            ("one by one, the image kept", False, 512),
            ("one by one, nothing kept", False, 0),
        ):
            rate = scored_per_s(run, pairs[:400], args.threads, together=together, cache_mb=cache_mb)
            row(name, f"{asyncio.run(rate):.1f}")


def report(by_scorer: dict[str, list[Graded]]) -> None:
    """All tables."""
    pairs = next(iter(by_scorer.values()))
    styles = list(dict.fromkeys(pair.sample.style for pair in pairs))
    images = len({pair.sample.images[0].sha256 for pair in pairs})
    print(f"{len(pairs)} pairs about {images} held-out scenes; nano-teacher asks, answers and judges.")

    table("AUC, right against wrong", "all", *map(str, styles))
    groups = [lambda p: True, *((lambda p, style=style: p.sample.style == style) for style in styles)]
    row("answers right", *(percent(sum(p.right for p in g), len(g)) for g in _cut(pairs, groups)))
    row("judge's score", *(area(g, "score") for g in _cut(pairs, groups)))
    for model, scored in by_scorer.items():
        row(f"loss of {model}", *(area(g, "loss", -1) for g in _cut(scored, groups)))
    row("not guessed blind", *(area(g, "blind", -1) for g in _cut(pairs, groups)))

    judged = replace(ALL, keep_at=JUDGE_CUT)
    right = [pair for pair in pairs if pair.right]
    recall = len(kept_by(right, judged)) / len(right)
    table("kept by", "pairs", "precision", "recall", "of them guessed blind")
    policy_row("nothing dropped", pairs, ALL)
    policy_row(f"judge >= {JUDGE_CUT:g}", pairs, judged)
    for model, scored in by_scorer.items():
        for cut in (LOSS_CUT, cut_at_recall(scored, recall)):
            policy_row(f"loss of {model} <= {cut:g}", scored, replace(ALL, max_loss=cut))
            policy_row(
                f"judge >= {JUDGE_CUT:g} and loss of {model} <= {cut:g}",
                scored,
                replace(judged, max_loss=cut),
            )
    policy_row("blind: drop", pairs, replace(ALL, blind="drop"))
    policy_row("blind: cap at 0.2", pairs, replace(ALL, blind="cap"))
    policy_row(f"judge >= {JUDGE_CUT:g}, blind: cap at 0.2", pairs, replace(judged, blind="cap"))
    policy_row(f"judge >= {JUDGE_CUT:g}, blind: drop", pairs, replace(judged, blind="drop"))

    for model, scored in by_scorer.items():
        cuts = [None, *(cut_at_recall(scored, share) for share in (0.95, 0.9, 0.8, 0.7, 0.5))]
        names = ["no cut" if cut is None else f"loss <= {cut:g}" for cut in cuts]
        table(f"precision / recall, loss of {model}", *names)
        for keep_at in (1.0, 6.0, 7.0, 8.0, 8.8):
            policies = [replace(ALL, keep_at=keep_at, max_loss=cut) for cut in cuts]
            row(f"judge >= {keep_at:g}", *(precision_recall(scored, policy) for policy in policies))

    table("types of", "pairs", "right", "guessed blind", "right where guessed", "right where not")
    for group in sorted({_type(pair).partition("/")[0] for pair in pairs}):
        some = [pair for pair in pairs if _type(pair).startswith(f"{group}/")]
        sides = [some, [p for p in some if p.blind], [p for p in some if not p.blind]]
        rights = [percent(sum(p.right for p in side), len(side)) for side in sides]
        row(group, len(some), rights[0], percent(len(sides[1]), len(some)), *rights[1:])


def precision_recall(pairs: Sequence[Graded], policy: Policy) -> str:
    kept = kept_by(pairs, policy)
    right = sum(pair.right for pair in kept)
    return f"{percent(right, len(kept))} / {percent(right, sum(pair.right for pair in pairs))}"


def _cut(pairs: Sequence[Graded], groups: Sequence) -> list[list[Graded]]:
    return [[pair for pair in pairs if belongs(pair)] for belongs in groups]


if __name__ == "__main__":
    main()
