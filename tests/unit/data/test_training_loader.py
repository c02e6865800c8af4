"""The stream of rows: the same for every number of processes, and resumable at every step."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from PIL import Image
from toy_data import ToySource, conversation, outline_of, processor

from infinity_mm.data.conversation import Conversation, Outline
from infinity_mm.data.encode import Encoder
from infinity_mm.data.loader import LoaderConfig, LoaderState, RowLoader, StepBatch, assign, count_rows
from infinity_mm.data.mixture import Mixture, Phase, WeightedSource
from infinity_mm.data.plan import PlanConfig, Planner
from infinity_mm.data.quarantine import Listed, Quarantine
from infinity_mm.errors import UserError
from infinity_mm.vision.images import BadImage

PLAN = PlanConfig(row_tokens=100, window=8)
CONFIG = LoaderConfig(global_batch_rows=4, micro_batch_rows=1, num_workers=0)
START = LoaderState()


def planner(source: Any = None, plan: PlanConfig = PLAN, **keys: Any) -> Planner:
    mixture = Mixture([WeightedSource(source=source or ToySource(), name="toy")])
    return Planner([Phase(from_step=0, mixture=mixture)], Encoder(processor()), plan, **keys)


def loader(state: LoaderState = START, source: Any = None, plan: PlanConfig = PLAN, **keys: Any) -> RowLoader:
    config = keys.pop("config", CONFIG)
    given = keys.pop("planner", None) or planner(source, plan)
    return RowLoader(given, config, state=state, **keys)


def ids(step: StepBatch) -> list[tuple[str, ...]]:
    return sorted(row for batch in step.micro_batches for row in batch.ids)


def test_rows_are_dealt_by_work_the_heaviest_to_whoever_has_least() -> None:
    costs = [1, 9, 2, 8, 3, 7, 0, 0]
    # Rounds: 9 and 8 to the first and second, then 7 to the second, which has less, and 3 to the first, ...
    assert assign(costs, world_size=2, rank=0, micro_batch_rows=2) == [[1, 4], [2, 6]]
    assert assign(costs, world_size=2, rank=1, micro_batch_rows=2) == [[3, 5], [0, 7]]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_no_process_gets_more_than_the_heaviest_row_above_another(world_size: int) -> None:
    rng = random.Random(world_size)
    costs = [rng.randrange(1000) for _ in range(64)]
    owned = [list(itertools.chain(*assign(costs, world_size, rank, 2))) for rank in range(world_size)]
    assert sorted(itertools.chain(*owned)) == list(range(64))
    loads = [sum(costs[row] for row in rows) for rows in owned]
    assert max(loads) - min(loads) <= max(costs)


def test_a_global_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="not a multiple of 2 processes x micro_batch_rows=3"):
        assign([0] * 8, world_size=2, rank=0, micro_batch_rows=3)


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_processes_together_see_the_rows_of_one(world_size: int) -> None:
    alone = list(islice(loader(), 5))
    ranks = [list(islice(loader(rank=r, world_size=world_size), 5)) for r in range(world_size)]
    for number, step in enumerate(alone):
        together = [steps[number] for steps in ranks]
        assert all(other.next == step.next for other in together)
        assert sorted(itertools.chain(*map(ids, together))) == ids(step)


def test_a_row_has_the_same_tensors_on_every_process() -> None:
    alone = {batch.ids[0]: batch for step in islice(loader(), 3) for batch in step.micro_batches}
    for rank in (0, 1):
        for step in islice(loader(rank=rank, world_size=2), 3):
            for batch in step.micro_batches:
                for name, value in vars(batch).items():
                    other = getattr(alone[batch.ids[0]], name)
                    same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
                    assert same, name


def test_a_process_reads_its_own_samples_only() -> None:
    read: list[int] = []

    class Recording(ToySource):
        def __getitem__(self, index: int) -> Conversation:
            read.append(index)
            return super().__getitem__(index)

        def outline(self, index: int) -> Outline:
            return outline_of(ToySource.__getitem__(self, index))

    steps = list(islice(loader(source=Recording(), rank=1, world_size=4), 3))
    own = {id_ for step in steps for row in ids(step) for id_ in row}
    assert {f"s{index}" for index in read} == own
    assert len(own) < 20


KILL_POINTS = (1, 2, 5, 7)


@cache
def uninterrupted() -> list[StepBatch]:
    return list(islice(loader(), 9))


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_run_killed_anywhere_goes_on_with_the_same_samples_on_any_number_of_processes(
    before: int, after: int
) -> None:
    for killed_at in KILL_POINTS:
        state = list(islice(loader(rank=before - 1, world_size=before), killed_at))[-1].next
        state = LoaderState(**{name: getattr(state, name) for name in LoaderState.__dataclass_fields__})
        ranks = [
            list(islice(loader(state, rank=rank, world_size=after), 9 - killed_at)) for rank in range(after)
        ]
        for number, expected in enumerate(uninterrupted()[killed_at:]):
            resumed = [steps[number] for steps in ranks]
            assert sorted(itertools.chain(*map(ids, resumed))) == ids(expected)
            assert {step.next.chain for step in resumed} == {expected.next.chain}


def test_a_state_that_now_means_other_samples_is_refused() -> None:
    state = uninterrupted()[4].next
    with pytest.raises(UserError, match="step 5 would now be made of other samples"):
        next(iter(loader(state, plan=replace(PLAN, seed=1))))
    with pytest.raises(UserError, match="step 5 would now be made of other samples"):
        next(iter(loader(replace(state, chain="0" * 64))))
    # A run that goes on with other data from step 5 on begins at its start.
    fresh, first = (next(iter(loader(state))) for state in (LoaderState(step=5), LoaderState()))
    assert fresh.planned == first.planned
    assert fresh.next.step == 6


def test_every_epoch_holds_every_sample_once_in_another_order() -> None:
    plan = planner()
    orders = [[i for w in range(3) for i in plan.window(0, epoch, w).opened] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]
    num_rows = count_rows(plan, num_workers=0)
    seen = [id_ for step in islice(loader(), num_rows // 4 + 1) for s in step.planned for id_ in [s.id]]
    assert sorted(seen[:20]) == sorted(f"s{i}" for i in range(20))


class SomeBad(ToySource):
    """Sample 3 is too long, 4 has no places for its image, 5 a bad header, 6 bad pixels, 7 no exchange."""

    def __getitem__(self, index: int) -> Conversation:
        match index:
            case 3:
                return conversation("What?", "red " * 200, id_="s3")
            case 4:
                return replace(conversation("<image> and <image>?", "red", id_="s4"), images=PICTURES)
            case 6:
                raise BadImage("truncated", "half of it is missing")
            case 7:
                return Conversation(id="s7", images=PICTURES, messages=())
        return super().__getitem__(index)

    def outline(self, index: int) -> Outline:
        if index == 5:
            raise BadImage("not_an_image")
        return outline_of(ToySource.__getitem__(self, 6) if index == 6 else self[index])


PICTURES = (Image.new("RGB", (8, 8)),)


def fates(steps: Sequence[StepBatch]) -> dict[str, tuple[str, str]]:
    drops = [drop for step in steps for drop in (*step.dropped, *step.spoiled)]
    return {drop.id: (drop.fate, drop.reason) for drop in drops}


def one_epoch(source: Any, **keys: Any) -> list[StepBatch]:
    """The steps in which every sample of the source is used once."""
    steps: Iterator[StepBatch] = iter(loader(source=source, **keys))
    taken: list[StepBatch] = []
    while sum(key.epoch == 0 for step in taken for key in step.opened) < len(source) or not any(
        sample.key.epoch for step in taken for sample in step.planned
    ):
        taken.append(next(steps))
    return taken


def test_every_sample_that_is_not_used_has_a_fate_and_a_reason() -> None:
    found = fates(one_epoch(SomeBad(size=12)))
    assert found == {
        "s3": ("dropped", "over-long: 216 tokens"),
        "s4": ("quarantined", "2 `<image>` places but 1 images"),
        "#5": ("quarantined", "not_an_image"),
        "s6": ("quarantined", "truncated: half of it is missing"),
        "s7": ("dropped", "no messages"),
    }


def test_a_sample_that_spoils_leaves_padding_and_no_other_sample_takes_its_place() -> None:
    good, bad = (
        next(step for step in one_epoch(source) if any(s.id == "s6" for s in step.planned))
        for source in (ToySource(size=12), SomeBad(size=12))
    )
    assert "s6" not in {id_ for row in ids(bad) for id_ in row}
    assert {id_ for row in ids(bad) for id_ in row} < {s.id for s in bad.planned}
    assert [len(batch.input_ids) for batch in bad.micro_batches] == [1] * 4
    assert good.next.row >= 0


def test_what_is_listed_is_left_out_and_changes_no_other_fate() -> None:
    listed = Quarantine([Listed("toy", "s2", "ugly"), Listed("another", "s1", "elsewhere")])
    steps = list(islice(loader(planner=planner(quarantine=listed)), 6))
    assert fates(steps) == {"s2": ("quarantined", "listed: ugly")}
    assert "s1" in {sample.id for step in steps for sample in step.planned}


def test_an_over_long_sample_is_an_error_where_the_policy_says_so() -> None:
    with pytest.raises(UserError, match="sample s3 of `toy` has 216 tokens, a row 100"):
        list(islice(loader(source=SomeBad(size=8), plan=replace(PLAN, over_long="error")), 3))


def test_a_source_without_a_usable_sample_ends_with_an_error() -> None:
    with pytest.raises(UserError, match="no sample of a whole epoch could be used"):
        next(iter(loader(plan=PlanConfig(row_tokens=8))))


def test_background_processes_give_the_same_rows() -> None:
    config = LoaderConfig(global_batch_rows=4, micro_batch_rows=1, num_workers=1)
    expected = [ids(step) for step in islice(loader(), 2)]
    assert [ids(step) for step in islice(loader(config=config), 2)] == expected


def two_phases(second: float) -> Planner:
    """From step 3 on only the second of two sources, or a mix of both."""
    parts = [ToySource(), ToySource(size=21)]
    mixtures = [
        Mixture([WeightedSource(source=s, name=f"toy-{i}", weight=w) for i, (s, w) in enumerate(zip(parts, weights))])
        for weights in ((1.0, 0.0), (second, 1.0))
    ]  # fmt: skip
    phases = [Phase(from_step=step, mixture=mixture) for step, mixture in zip((0, 3), mixtures)]
    return Planner(phases, Encoder(processor()), PLAN)


def test_a_phase_begins_at_its_step_and_what_was_left_of_the_window_is_dropped() -> None:
    steps = list(islice(loader(planner=two_phases(0.0)), 6))
    assert [{s.source for s in step.planned} for step in steps] == [{"toy-0"}] * 3 + [{"toy-1"}] * 3
    opened = {key for step in steps[:3] for key in step.opened}
    used = {s.key for step in steps[:3] for s in step.planned}
    unused = {d.key for d in steps[3].dropped}
    assert unused == opened - used
    assert unused
    assert {d.reason for d in steps[3].dropped} == {"the phase of the mixture ended"}


def test_a_phase_may_be_set_to_begin_where_a_run_without_it_stands() -> None:
    mixture = two_phases(0.0).phases[0].mixture
    alone = Planner([Phase(from_step=0, mixture=mixture)], Encoder(processor()), PLAN)
    state = list(islice(loader(planner=alone), 3))[-1].next
    branch = list(islice(loader(state, planner=two_phases(0.0)), 2))
    assert [step.next for step in branch] == [
        step.next for step in islice(loader(planner=two_phases(0.0)), 3, 5)
    ]


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4, 5])
def test_a_run_killed_around_a_phase_goes_on_as_if_never_killed(killed_at: int) -> None:
    steps = list(islice(loader(planner=two_phases(0.5)), 7))
    resumed = list(islice(loader(steps[killed_at - 1].next, planner=two_phases(0.5)), 7 - killed_at))
    assert [step.next for step in resumed] == [step.next for step in steps[killed_at:]]
    assert [step.dropped for step in resumed] == [step.dropped for step in steps[killed_at:]]
