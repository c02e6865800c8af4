"""Schedules, by literal."""

import pytest

from infinity_mm.errors import UserError
from infinity_mm.training.config import ScheduleConfig
from infinity_mm.training.schedule import lr_factor, refuse_bad_branch


def factors(schedule: ScheduleConfig, total_steps: int) -> list[float]:
    return [lr_factor(schedule, step, total_steps) for step in range(total_steps)]


def test_wsd_warms_up_stays_and_decays_exponentially() -> None:
    schedule = ScheduleConfig(name="wsd", warmup_steps=2, decay_steps=2, final_ratio=0.01)
    assert factors(schedule, 6) == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.1, 0.01])


def test_wsd_to_zero_decays_linearly() -> None:
    schedule = ScheduleConfig(decay_fraction=0.5, decay="linear", final_ratio=0.0)
    assert factors(schedule, 4) == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_wsd_by_one_minus_sqrt_is_steep_at_first() -> None:
    schedule = ScheduleConfig(decay_steps=4, decay="one_minus_sqrt", final_ratio=0.0)
    assert factors(schedule, 5) == pytest.approx([1.0, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0.0])


def test_an_exponential_that_should_end_at_zero_is_refused() -> None:
    with pytest.raises(UserError, match="never arrives"):
        ScheduleConfig(name="wsd", final_ratio=0.0)
    ScheduleConfig(name="cosine", final_ratio=0.0)


def test_linear_is_a_straight_line_to_the_final_ratio() -> None:
    schedule = ScheduleConfig(name="linear", warmup_steps=1, final_ratio=0.2)
    assert factors(schedule, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_warm_up_may_be_a_share_of_the_run() -> None:
    schedule = ScheduleConfig(name="constant", warmup_fraction=0.5)
    assert factors(schedule, 4) == [0.5, 1.0, 1.0, 1.0]


def test_a_branch_must_continue_a_stable_phase() -> None:
    stable, decayed = ScheduleConfig(name="constant"), ScheduleConfig(decay_steps=2)
    refuse_bad_branch(stable, 100, decayed, 6, 4)
    with pytest.raises(UserError, match=r"step 5 of the checkpoint's run had .* factor 1;"):
        refuse_bad_branch(stable, 100, decayed, 6, 5)
    with pytest.raises(UserError, match="would have had 1"):
        refuse_bad_branch(decayed, 6, ScheduleConfig(decay_steps=2), 9, 5)


def test_cosine_passes_the_middle_and_ends_at_the_final_ratio() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_steps=1, final_ratio=0.2)
    assert factors(schedule, 5) == pytest.approx([1.0, 0.6 + 0.4 * 0.5**0.5, 0.6, 0.6 - 0.4 * 0.5**0.5, 0.2])


def test_constant_stays() -> None:
    assert factors(ScheduleConfig(name="constant", warmup_steps=2), 4) == [0.5, 1.0, 1.0, 1.0]


def test_a_schedule_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="warm-up of 5 and decay of 6 steps do not fit 10 steps"):
        lr_factor(ScheduleConfig(warmup_steps=5, decay_steps=6), 5, 10)
