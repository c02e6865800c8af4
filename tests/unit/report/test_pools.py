"""Bounded, seeded samples."""

import random

from infinity_mm.report.pools import Smallest, draw


def sample(ids: list[str], seed: int = 0) -> list[str]:
    pool = Smallest(3)
    for id_ in ids:
        pool.offer((draw(seed, "s", id_), id_), lambda id_=id_: id_)
    assert pool.seen == len(ids)
    return list(pool)


def test_a_sample_depends_on_the_seed_and_the_ids_and_not_on_their_order() -> None:
    ids = [f"id{number}" for number in range(50)]
    shuffled = random.Random(1).sample(ids, len(ids))
    assert sample(ids) == sample(shuffled)
    assert len(sample(ids)) == 3
    assert sample(ids) != sample(ids, seed=1)


def test_a_row_is_only_made_when_it_is_kept() -> None:
    made: list[int] = []
    pool = Smallest(2)
    for number in range(100):
        pool.offer((number,), lambda number=number: made.append(number) or number)
    assert list(pool) == made == [0, 1]


def test_every_id_has_the_same_chance() -> None:
    ids = [f"id{number}" for number in range(10)]
    hits = sum("id7" in sample(ids, seed) for seed in range(400))
    assert 80 < hits < 160
