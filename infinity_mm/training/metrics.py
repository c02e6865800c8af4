"""What a run reports: a line on the terminal, `metrics.jsonl`, and TensorBoard events if asked for."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from infinity_mm.errors import need


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
    images: int
    tokens: int
    """Padding left out."""
    labels: int
    """Supervised tokens."""
    fill: float
    """Share of the rows' positions that hold a token."""
    wait_s: float
    """Seconds this process waited for data."""
    step_s: float
    """Seconds of the whole step, waiting included."""


class Reporter:
    """Writes metrics; only the main process has one that writes."""

    def __init__(
        self,
        out_dir: Path,
        *,
        total_steps: int,
        first_step: int,
        every: int,
        tensorboard: bool,
        quiet: bool = False,
    ) -> None:
        self._total, self._every = total_steps, max(1, every)
        self._recent: deque[StepMetrics] = deque(maxlen=max(20, every))
        self._console = Console(quiet=quiet, soft_wrap=True)
        self._file = out_dir / "metrics.jsonl"
        _forget_later_steps(self._file, first_step)
        self._events = _tensorboard(out_dir / "tensorboard", first_step) if tensorboard else None

    def log(self, metrics: StepMetrics) -> None:
        """Record one step; print every so often."""
        self._recent.append(metrics)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(metrics)) + "\n")
        if self._events is not None:
            for key in ("loss", "grad_norm", "lr", "fill", "step_s", "wait_s"):
                self._events.add_scalar(f"train/{key}", getattr(metrics, key), metrics.step)
        if metrics.step % self._every == 0 or metrics.step == self._total:
            self._console.print(self.line(metrics), highlight=False)

    def line(self, metrics: StepMetrics) -> str:
        """The progress line: rates are means over the last steps."""
        seconds = sum(m.step_s for m in self._recent)

        def rate(name: str) -> float:
            return sum(getattr(m, name) for m in self._recent) / max(seconds, 1e-9)

        left = (self._total - metrics.step) * seconds / len(self._recent)
        loss = sum(m.loss for m in self._recent) / len(self._recent)
        waiting = sum(m.wait_s for m in self._recent) / max(seconds, 1e-9)
        return (
            f"step {metrics.step}/{self._total}  loss [bold]{loss:.4f}[/bold]  lr x{metrics.lr:.3f}  "
            f"grad {metrics.grad_norm:.2f}  {rate('rows'):.1f} rows/s  {rate('images'):.0f} images/s  "
            f"{rate('tokens'):.0f} tokens/s  fill {metrics.fill:.1%}  waiting {waiting:.0%}  "
            f"left {time.strftime('%H:%M:%S', time.gmtime(left))}"
        )

    def say(self, text: str) -> None:
        """A line for people."""
        self._console.print(text, highlight=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._events is not None:
            self._events.close()


def _forget_later_steps(path: Path, first_step: int) -> None:
    """Remove the lines of steps that a resumed run will do again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first_step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise need("tensorboard", extra="train", purpose="tensorboard: true") from error
    return writer(str(folder), purge_step=first_step + 1)
