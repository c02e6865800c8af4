"""Learning-rate schedules as pure functions: step -> factor of the peak.

They are not prepared by accelerate: a prepared scheduler steps once per process and step.
"""

from __future__ import annotations

import math

from infinity_mm.errors import explain
from infinity_mm.training.config import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor for optimiser step `step` (from 0) of `total_steps`; the last step reaches the final ratio."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    match schedule.name:
        case "constant":
            return 1.0
        case "cosine":
            return cosine(
                step - schedule.warmup_steps, total_steps - schedule.warmup_steps, schedule.final_ratio
            )
        case "wsd":
            return wsd_decay(step, total_steps, decay_steps(schedule, total_steps), schedule.final_ratio)


def decay_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps over which `wsd` decays; raises UserError when warm-up and decay do not fit the run."""
    steps = (
        round(schedule.decay_fraction * total_steps) if schedule.decay_steps is None else schedule.decay_steps
    )
    if schedule.warmup_steps + steps > total_steps:
        raise explain(
            what=f"warm-up of {schedule.warmup_steps} and decay of {steps} steps do not fit {total_steps} steps",
            where="YAML section `schedule`",
            fix="shorten one, or raise steps",
        )
    return steps


def cosine(step: int, num_steps: int, final_ratio: float) -> float:
    """Half a cosine from 1 down to `final_ratio`."""
    progress = min(1.0, (step + 1) / max(1, num_steps))
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd_decay(step: int, total_steps: int, num_decay_steps: int, final_ratio: float) -> float:
    """1 until the last `num_decay_steps`, then exponentially down to `final_ratio`.

    Source: MiniCPM (arXiv 2404.06395), section 4.2: stable, then exponential annealing. Where `final_ratio` is 0 an
    exponential never arrives, so the decay is linear.
    """
    into = step + 1 - (total_steps - num_decay_steps)
    if into <= 0:
        return 1.0
    progress = min(1.0, into / num_decay_steps)
    return final_ratio**progress if final_ratio > 0 else 1.0 - progress
