"""What is measured between steps: a loss on held-out rows, and tasks that the model is asked.

    step --due--> HeldOut.loss ------------------------------------------> Measured
         --due--> each process: its share of a task --gather--> accuracies ^

Nothing random is drawn and nothing of the model or the data changes, so the steps are those of a run that measures
nothing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from accelerate import Accelerator
from torch import nn

from infinity_mm.engines.transformers import backend_for
from infinity_mm.errors import explain
from infinity_mm.eval.asking import Answered, Asker, accuracies
from infinity_mm.eval.memory_images import MemoryImages
from infinity_mm.eval.tasks import Task, Writer, build_task
from infinity_mm.training.config import HELD_OUT_LOSS, SftConfig, TaskConfig
from infinity_mm.training.monitor import everywhere
from infinity_mm.training.noise import EmbeddingNoise
from infinity_mm.training.sharding import unsharded

_KEPT_BYTES = 256 << 20
"""Features and prefilled prompts kept while a task is asked, for questions that share an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured after one step; nothing on most."""

    held_out_loss: float | None = None
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    """By name."""

    def scores(self) -> dict[str, float]:
        """One number each, by which checkpoints are compared."""
        accuracy = {name: found["accuracy"] for name, found in self.tasks.items()}
        return accuracy if self.held_out_loss is None else {HELD_OUT_LOSS: self.held_out_loss, **accuracy}


@final
class Measure:
    """Measures what is due, on every process at once."""

    def __init__(
        self,
        config: SftConfig,
        accelerator: Accelerator,
        model: Any,
        shared: nn.Module,
        processor: Any,
        noise: EmbeddingNoise,
        *,
        total_steps: int,
        write: Writer,
        held_out_loss: Callable[[], float],
        answered: Callable[[int, str, Sequence[Answered]], None],
    ) -> None:
        """`model` is that of transformers, `shared` the same as the processes share it; `answered` gets (step, task,
        answers of all processes) on every process."""
        self._config, self._accelerator, self._noise = config, accelerator, noise
        self._model, self._shared = model, shared
        self._total_steps, self._held_out_loss, self._answered = total_steps, held_out_loss, answered
        self._processor = (
            copy.deepcopy(processor) if config.tasks else None
        )  # an engine may set it up otherwise
        self._tasks = [(task, _build(task, write)) for task in config.tasks]

    def __call__(self, step: int) -> Measured:
        """After `step` finished steps."""
        held_out = self._config.held_out
        return Measured(
            held_out_loss=self._held_out_loss()
            if held_out and self._is_due(held_out.every_steps, step)
            else None,
            tasks={
                config.name: self._ask(step, config, task)
                for config, task in self._tasks
                if self._is_due(config.every_steps, step)
            },
        )

    def _is_due(self, every_steps: int, step: int) -> bool:
        return step % every_steps == 0 or step == self._total_steps

    def _ask(self, step: int, config: TaskConfig, task: Task) -> dict[str, float]:
        """Each process asks its share of the samples."""
        start = time.perf_counter()
        size, world = len(task), self._accelerator.num_processes
        number = min(size, config.max_samples or size)
        indices = [place * size // number for place in range(number)]
        with self._answering():
            images = MemoryImages()
            asker = Asker(
                backend=backend_for(self._model, self._processor, images, cache_bytes=_KEPT_BYTES),
                images=images,
                max_new_tokens=config.max_new_tokens,
                batch=config.batch,
            )
            own = list(asker.ask(task, indices[self._accelerator.process_index :: world]))
        answered = [one for part in everywhere(self._accelerator, own) for one in part]
        self._answered(step, config.name, answered)
        return accuracies(answered) | {"seconds": time.perf_counter() - start}

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The model as it answers: no noise, no dropout, no gradient, attention that has a cache; then as it was."""
        model, attention = self._model, self._model.config._attn_implementation
        self._noise.end()
        with ExitStack() as stack:
            stack.callback(model.train, model.training)
            stack.callback(model.set_attn_implementation, attention)
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._accelerator.autocast())
            stack.enter_context(unsharded(self._shared))
            if self._config.compile:  # every length would be compiled anew
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            model.eval()
            model.set_attn_implementation("sdpa")
            yield


def _build(config: TaskConfig, write: Writer) -> Task:
    task = build_task(
        config.kind, config.options, write=write, grading=config.grading, accepted=config.accepted
    )
    if not len(task):
        raise explain(
            what=f"the task {config.name} has no samples",
            where="YAML section `tasks`",
            fix="look at its options",
        )
    return task
