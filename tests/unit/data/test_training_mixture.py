"""Several sources behind one range of indices, and the random order over it."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_data import ToySource, processor

from infinity_mm.data.conversation import Outline
from infinity_mm.data.encode import Encoder
from infinity_mm.data.index import build_index
from infinity_mm.data.mixture import Mixture, Phase, WeightedSource, by_domain, check_phases, phase_at
from infinity_mm.data.permutation import permute
from infinity_mm.errors import UserError


def located(mixture: Mixture, epoch: int) -> list[tuple[int, int]]:
    numbers, inner = mixture.locate(epoch, np.arange(len(mixture)))
    return list(zip(numbers.tolist(), inner.tolist()))


def source(size: int, name: str = "", **keys: Any) -> WeightedSource:
    return WeightedSource(source=ToySource(size=size), name=name, **keys)


def test_a_weight_is_how_often_a_sample_is_seen_in_an_epoch() -> None:
    mixture = Mixture([source(4, weight=0.5), source(3, weight=2), source(9, weight=0)])
    assert len(mixture) == 8
    counts = Counter(located(mixture, 0))
    assert {key for key in counts if key[0] == 1} == {(1, 0), (1, 1), (1, 2)}
    assert sorted(counts.values()) == [1, 1, 2, 2, 2]


def test_the_next_epoch_goes_on_where_a_part_of_a_source_ended() -> None:
    mixture = Mixture([source(4, weight=0.5)])
    first, second, third = (set(located(mixture, epoch)) for epoch in (0, 1, 2))
    assert first | second == {(0, i) for i in range(4)}
    assert first == third


def test_a_cap_holds_in_every_epoch_and_all_samples_come_in_turn() -> None:
    mixture = Mixture([source(10, cap=4), source(3)])
    assert mixture.samples_per_epoch == [4, 3]
    seen = [index for epoch in range(5) for part, index in located(mixture, epoch) if part == 0]
    assert Counter(seen) == dict.fromkeys(range(10), 2)


def test_the_samples_below_a_cap_are_spread_over_the_source() -> None:
    inner = [index for _, index in located(Mixture([source(1000, cap=100)]), 0)]
    assert 400 < sum(inner) / 100 < 600


def test_a_temperature_evens_shares_out_and_keeps_the_length_of_the_epoch() -> None:
    assert Mixture([source(900), source(100)], temperature=2).samples_per_epoch == [750, 250]
    assert Mixture([source(900), source(100)], temperature=1).samples_per_epoch == [900, 100]


def test_a_weight_stays_a_factor_under_a_temperature() -> None:
    mixture = Mixture([source(900), source(100, weight=3)], temperature=2)
    assert mixture.samples_per_epoch == [600, 600]  # shares 1 x 30 and 3 x 10 of 900 + 3 x 100 samples


def test_the_domains_of_a_source_share_its_cap() -> None:
    def domains(cap: int | None) -> list[WeightedSource]:
        return [
            source(1, "web", domain=f"d{n}", cap=cap, only=np.arange(n), weight=w)
            for n, w in ((90, 1), (9, 1), (1, 1), (5, 0))
        ]

    assert Mixture([*domains(20), source(30)]).samples_per_epoch == [18, 1, 1, 0, 30]
    assert Mixture(domains(100)).samples_per_epoch == [90, 9, 1, 0]
    with pytest.raises(UserError, match="`web/d90`"):
        Mixture(domains(1))


def test_another_phase_takes_other_samples_of_a_source_it_does_not_need_whole() -> None:
    part = source(1000, "web", weight=0.1)
    first, same, later = (
        {index for _, index in located(Mixture([part], phase=phase), 0)} for phase in (0, 0, 1)
    )
    assert first == same
    assert len(later) == 100
    assert len(first & later) < 30  # 10 by chance


def test_domains_have_weights_of_their_own(tmp_path: Path) -> None:
    class Domains(ToySource):
        def outline(self, index: int) -> Outline:
            return replace(super().outline(index), domain=("math", "ocr", "web")[index % 3])

    data = Domains(size=10)
    index = build_index(data, Encoder(processor()), tmp_path)
    whole = WeightedSource(source=data, name="all", weight=2, index=index)
    mixture = Mixture(by_domain(whole, {"math": 1.5, "ocr": 0}))
    assert [(p.name, p.label) for p in mixture.parts] == [("all", "all/math"), ("all", "all/web")]
    assert mixture.samples_per_epoch == [12, 6]
    assert {i % 3 for part, i in located(mixture, 0) if part == 0} == {0}
    assert {i for part, i in located(mixture, 0) if part == 1} == {2, 5, 8}
    with pytest.raises(UserError, match="no domain maths"):
        by_domain(whole, {"maths": 2})
    with pytest.raises(UserError, match="nobody knows its samples' domains"):
        by_domain(replace(whole, index=None), {"math": 2})


def test_a_phase_holds_from_its_step_on() -> None:
    phases = check_phases([Phase(from_step=step, mixture=Mixture([source(4)])) for step in (0, 3, 10)])
    assert [phase_at(phases, step) for step in (0, 2, 3, 9, 10, 99)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match=r"start at steps \[0, 3, 3\]"):
        check_phases([phases[0], phases[1], phases[1]])


def test_the_fingerprint_changes_with_a_weight() -> None:
    one, other = (Mixture([source(20, weight=w)]) for w in (1, 2))
    assert one.fingerprint != other.fingerprint


def test_a_source_that_gives_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="data source `few` gives no sample"):
        Mixture([source(4, "few", weight=0.01)])
    with pytest.raises(UserError, match="no data source with a weight above 0"):
        Mixture([source(4, weight=0)])


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000])
def test_a_permutation_holds_every_index_once(size: int) -> None:
    assert sorted(permute(np.arange(size), size, 5).tolist()) == list(range(size))


def test_a_permutation_depends_on_its_key_and_looks_random() -> None:
    first, second = (permute(np.arange(1000), 1000, key).tolist() for key in (1, 2))
    assert first != second
    # Neighbours land far apart: on average a third of the range, as in a random order.
    assert 280 < sum(abs(a - b) for a, b in itertools.pairwise(first)) / 999 < 390
