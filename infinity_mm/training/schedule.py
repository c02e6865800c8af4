"""Learning-rate schedules as pure functions: step -> factor of the peak.

They are not prepared by accelerate: a prepared scheduler steps once per process and step.
"""

from __future__ import annotations

import math

from infinity_mm.errors import explain
from infinity_mm.training.config import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor for optimiser step `step` (from 0) of `total_steps`; the last step reaches the final ratio."""
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step + 1 - warmup) / max(1, total_steps - warmup))
    down = 1 - schedule.final_ratio
    match schedule.name:
        case "constant":
            return 1.0
        case "cosine":
            return schedule.final_ratio + down * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - down * progress
        case "wsd":
            return _decay(
                schedule, step + 1 - (total_steps - decay_steps(schedule, total_steps)), total_steps
            )


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps of linear warm-up."""
    return schedule.warmup_steps or round(schedule.warmup_fraction * total_steps)


def decay_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps over which `wsd` decays; raises UserError when warm-up and decay do not fit the run."""
    steps = (
        round(schedule.decay_fraction * total_steps) if schedule.decay_steps is None else schedule.decay_steps
    )
    warmup = warmup_steps(schedule, total_steps)
    if warmup + steps > total_steps:
        raise explain(
            what=f"warm-up of {warmup} and decay of {steps} steps do not fit {total_steps} steps",
            where="YAML section `schedule`",
            fix="shorten one, or raise steps",
        )
    return steps


def _decay(schedule: ScheduleConfig, into: int, total_steps: int) -> float:
    """1 until the last `decay_steps`, then down to `final_ratio`.

    Source: MiniCPM (arXiv 2404.06395), section 4.2: stable, then annealing over about a tenth of the run; its
    exponential halves every so many steps, here as often as leads to `final_ratio`.
    """
    if into <= 0:
        return 1.0
    progress, final = min(1.0, into / decay_steps(schedule, total_steps)), schedule.final_ratio
    match schedule.decay:
        case "exponential":
            return final**progress
        case "linear":
            return 1 - (1 - final) * progress
        case "one_minus_sqrt":
            return 1 - (1 - final) * math.sqrt(progress)


def refuse_bad_branch(
    before: ScheduleConfig, total_before: int, now: ScheduleConfig, total_now: int, steps: int
) -> None:
    """Raise UserError unless the first `steps` steps have the same factors under both schedules."""
    for step in range(steps):
        factors = lr_factor(before, step, total_before), lr_factor(now, step, total_now)
        if factors[0] != factors[1]:
            raise explain(
                what=f"step {step + 1} of the checkpoint's run had the learning-rate factor {factors[0]:.4g}; "
                f"under this schedule it would have had {factors[1]:.4g}",
                where="schedule.branch_from",
                fix="branch off a checkpoint of the stable phase, with the same warm-up in steps, and let the decay "
                f"begin after step {steps}",
            )
