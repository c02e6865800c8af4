"""What a run reports: a line on the terminal, `metrics.jsonl`, and trackers if asked for."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from infinity_mm.eval.asking import Answered
from infinity_mm.training.config import HELD_OUT_LOSS


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One optimiser step, over all processes."""

    step: int
    """Finished steps, this one included."""
    loss: float
    """Mean cross entropy of the step's supervised tokens, weighted as the configuration says, in nats."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    lr: float
    """Factor of the schedule."""
    rows: int
    samples: int
    samples_digest: str
    """Hash of the ids of these samples, so that two runs can be compared."""
    images: int
    tokens: int
    """Padding left out."""
    labels: int
    """Supervised tokens."""
    fill: float
    """Share of the rows' positions that hold a token."""
    wait_s: float
    """Seconds the process waited for data that waited longest."""
    step_s: float
    """Seconds of the whole step, waiting included, measuring held-out loss and saving not."""
    tokens_per_s: float
    images_per_s: float
    loss_by_domain: dict[str, float] = field(default_factory=dict)
    """Mean cross entropy per supervised token, unweighted."""
    loss_by_source: dict[str, float] = field(default_factory=dict)
    """The same by name of the source."""
    grad_norm_by_part: dict[str, float] = field(default_factory=dict)
    """Before clipping."""
    memory_gb: dict[str, float] = field(default_factory=dict)
    """The most of any process: `rss_peak`, and on a GPU `device_peak` since the step before."""
    flops_per_s: float | None = None
    """Operations a second for tokens and images of all processes: vision tower, connector, language model and head,
    forward and backward, nothing recomputed; None where there is no formula for the model."""
    padding_flops_per_s: float | None = None
    """Operations a second that went into padding."""
    mfu: float | None = None
    """`flops_per_s` over the peak of all devices."""
    problem: str | None = None
    """Why the optimiser left this step out."""
    held_out_loss: float | None = None
    """Measured after this step."""
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    """Evaluation, never training: of each task asked after this step the `accuracy`, `accuracy_blank_image`,
    `num_questions`, `failures` and `seconds`."""


class Reporter:
    """Writes metrics; only the main process has one that writes."""

    def __init__(
        self,
        out_dir: Path,
        *,
        total_steps: int,
        first_step: int,
        every: int,
        track: Callable[[dict[str, float], int], None] | None = None,
        quiet: bool = False,
    ) -> None:
        """`track` takes flat values and the step, for example `Accelerator.log`."""
        self._total, self._every = total_steps, max(1, every)
        self._recent: deque[StepMetrics] = deque(maxlen=max(20, every))
        self._console = Console(quiet=quiet, soft_wrap=True)
        self._file = out_dir / "metrics.jsonl"
        self._skipped = out_dir / "skipped.jsonl"
        self._evaluation = out_dir / "evaluation.jsonl"
        for file in (self._file, self._skipped, self._evaluation):
            _forget_later_steps(file, first_step)
        self._track = track

    def log(self, metrics: StepMetrics) -> None:
        """Record one step; print every so often."""
        self._recent.append(metrics)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(metrics)) + "\n")
        if self._track is not None:
            self._track(flat(metrics), metrics.step)
        if metrics.step % self._every == 0 or metrics.step == self._total:
            self._console.print(self.line(metrics), highlight=False)
        if metrics.held_out_loss is not None:
            self._console.print(
                f"step {metrics.step}  held-out loss {metrics.held_out_loss:.4f}", highlight=False
            )
        for name, found in metrics.tasks.items():
            self._console.print(
                f"step {metrics.step}  {name} {found['accuracy']:.1%} of {found['num_questions']:.0f} questions, "
                f"{found['accuracy_blank_image']:.1%} on blank images",
                highlight=False,
            )

    def answered(self, step: int, task: str, answered: Iterable[Answered]) -> None:
        """What the model replied to every question of a task."""
        with self._evaluation.open("a", encoding="utf-8") as file:
            for one in answered:
                line = {"step": step, "task": task, **dataclasses.asdict(one)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def skipped(self, step: int, problem: str, ids: list[str]) -> None:
        """A step the optimiser left out."""
        with self._skipped.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "problem": problem, "ids": ids}) + "\n")
        self._console.print(
            f"step {step} is left out: {problem}; its samples are in {self._skipped}", highlight=False
        )

    def line(self, metrics: StepMetrics) -> str:
        """The progress line: rates are means over the last steps."""
        seconds = sum(m.step_s for m in self._recent)

        def rate(name: str) -> float:
            return sum(getattr(m, name) for m in self._recent) / max(seconds, 1e-9)

        left = (self._total - metrics.step) * seconds / len(self._recent)
        good = [m.loss for m in self._recent if m.problem is None] or [metrics.loss]
        loss = sum(good) / len(good)
        waiting = sum(m.wait_s for m in self._recent) / max(seconds, 1e-9)
        return (
            f"step {metrics.step}/{self._total}  loss [bold]{loss:.4f}[/bold]  lr x{metrics.lr:.3f}  "
            f"grad {metrics.grad_norm:.2f}  {rate('rows'):.1f} rows/s  {rate('images'):.0f} images/s  "
            f"{rate('tokens'):.0f} tokens/s  fill {metrics.fill:.1%}  waiting {waiting:.0%}  "
            f"{_speed(metrics)}"
            f"left {time.strftime('%H:%M:%S', time.gmtime(left))}"
        )

    def say(self, text: str) -> None:
        """A line for people."""
        self._console.print(text, highlight=False)


def _forget_later_steps(path: Path, first_step: int) -> None:
    """Remove the lines of steps that a resumed run will do again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first_step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _speed(metrics: StepMetrics) -> str:
    if metrics.mfu is not None:
        return f"MFU {metrics.mfu:.1%}  "
    return "" if metrics.flops_per_s is None else f"{metrics.flops_per_s / 1e12:.2f} TFLOP/s  "


def flat(metrics: StepMetrics) -> dict[str, float]:
    """Every number under one name, as trackers want them; what was measured on held-out data under `evaluation/`."""
    values: dict[str, float] = {}
    for name, value in dataclasses.asdict(metrics).items():
        if name == "tasks":
            for task, found in value.items():
                values |= {f"evaluation/{task}/{key}": number for key, number in found.items()}
        elif isinstance(value, dict):
            values |= {f"{name}/{key}": inner for key, inner in value.items()}
        elif isinstance(value, (int, float)) and name != "step":
            values[f"{'evaluation' if name == HELD_OUT_LOSS else 'train'}/{name}"] = value
    return values
