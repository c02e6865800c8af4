"""Measurements of samples, kept and looked up, and the rows planned from them."""

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_data import ToySource, conversation, outline_of, picture, processor

from infinity_mm.data import index as index_module
from infinity_mm.data.conversation import Conversation, Outline, Turns, keep_exchanges
from infinity_mm.data.encode import Encoder
from infinity_mm.data.index import LiveIndex, build_index
from infinity_mm.data.measure import Measured, measure
from infinity_mm.data.mixture import Mixture, Phase, WeightedSource
from infinity_mm.data.plan import PlanConfig, Planner
from infinity_mm.data.readers.llava_json import LlavaJsonSource
from infinity_mm.errors import UserError
from infinity_mm.vision.images import BadImage

ENCODER = Encoder(processor())


@dataclass(frozen=True)
class ListSource:
    """Given conversations."""

    conversations: tuple[Conversation, ...]
    turns: Turns = "causal"
    fingerprint: str = "list"

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Conversation:
        return self.conversations[index]

    def outline(self, index: int) -> Outline:
        return outline_of(self[index])


def several(turns: Turns = "causal") -> ListSource:
    """Two exchanges with an image each, and a system text; or both images before both exchanges."""
    texts = ("<image>What?", "red", "And <image>this one here?", "green green")
    if turns == "independent":
        texts = ("<image><image>What?", "red", "And this one here?", "green green")
    talk = conversation(*texts, images=2, system="Be brief.")
    return ListSource((talk,), turns)


@pytest.mark.parametrize("turns", ["causal", "independent"])
def test_what_is_measured_is_what_encoding_gives(turns: Turns) -> None:
    source = several(turns)
    sample = measure(source, 0, ENCODER)
    images = [cost.tokens for cost in ENCODER.image_costs(sample.image_sizes)]
    encoded = ENCODER.encode(source[0], turns)
    assert sum(sample.tokens) + sum(images) == len(encoded.layout)
    assert sample.images == ((0, 1, 1) if turns == "causal" else (2, 0, 0))
    assert encoded.view_shapes is not None
    shapes = [shape for cost in ENCODER.image_costs(sample.image_sizes) for shape in cost.view_shapes]
    assert encoded.view_shapes[:, 1:].tolist() == [list(shape) for shape in shapes]


@pytest.mark.parametrize("turns", ["causal", "independent"])
def test_the_first_exchanges_cost_what_their_prefix_costs(turns: Turns) -> None:
    source = several(turns)
    sample = measure(source, 0, ENCODER)
    num_images = sum(sample.images[:2])
    images = [cost.tokens for cost in ENCODER.image_costs(sample.image_sizes[:num_images])]
    cut = keep_exchanges(source[0], 1)
    assert len(cut.images) == num_images
    assert sum(sample.tokens[:2]) + sum(images) == len(ENCODER.encode(cut, turns).layout)


def row_tokens_for(source: ListSource, exchanges: int) -> int:
    return len(ENCODER.encode(keep_exchanges(source[0], exchanges), "causal").layout)


def plan(source: Any, **keys: Any) -> Planner:
    mixture = Mixture([WeightedSource(source=source, name="toy")])
    return Planner([Phase(from_step=0, mixture=mixture)], ENCODER, PlanConfig(**keys))


@pytest.mark.parametrize(("room", "exchanges"), [(0, 2), (-1, 1)])
def test_truncation_keeps_as_many_whole_exchanges_as_fit(room: int, exchanges: int) -> None:
    source = several()
    row_tokens = row_tokens_for(source, 2) + room
    window = plan(source, row_tokens=row_tokens, over_long="truncate_turns").window(0, 0, 0)
    ((sample,),) = window.rows
    assert sample.exchanges == exchanges
    assert sample.tokens == row_tokens_for(source, exchanges)


def test_a_sample_of_which_not_even_one_exchange_fits_is_dropped() -> None:
    source = several()
    row_tokens = row_tokens_for(source, 1) - 1
    window = plan(source, row_tokens=row_tokens, over_long="truncate_turns").window(0, 0, 0)
    assert not window.rows
    assert [drop.reason.partition(":")[0] for drop in window.dropped] == ["over-long"]


def test_a_budget_of_vision_work_holds_for_samples_and_rows() -> None:
    one_image = sum(rows * columns for rows, columns in ENCODER.image_costs([(16, 16)])[0].view_shapes)
    talks = tuple(conversation("Q?", "red", images=1, id_=str(i)) for i in range(4))
    source = ListSource((*talks, several()[0]))
    planner = plan(source, row_tokens=10_000, row_vision=2 * one_image, over_long="truncate_turns")
    window = planner.window(0, 0, 0)
    assert (
        sorted(sum(sample.vision for sample in row) for row in window.rows)
        == [one_image] + [2 * one_image] * 2
    )
    assert [s.exchanges for row in window.rows for s in row] == [
        1
    ] * 5  # the second image of the last is too much


def test_an_image_that_slicing_refuses_drops_its_sample() -> None:
    class Long(ToySource):
        def outline(self, index: int) -> Outline:
            return replace(super().outline(index), image_sizes=((10_000, 10),) * (index % 3))

    window = plan(Long(size=2), row_tokens=1000).window(0, 0, 0)
    assert [drop.reason.partition(":")[0] for drop in window.dropped] == ["image refused"]


def test_a_sample_whose_image_cannot_be_opened_keeps_its_id_and_domain() -> None:
    class NoHeader(ToySource):
        def outline(self, index: int) -> Outline:
            whole = super().outline(index)
            return replace(whole, image_sizes=(), domain="web", problem="not_an_image: 3 bytes")

    sample = measure(NoHeader(), 1, ENCODER)
    assert (sample.id, sample.domain, sample.problem) == ("s1", "web", "not_an_image: 3 bytes")


def test_an_index_gives_what_measuring_gives_and_survives_pickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "PART_SAMPLES", 8)

    class OneUnreadable(ToySource):
        def outline(self, index: int) -> Outline:
            if index == 11:
                raise BadImage("truncated")
            return super().outline(index)

    source = OneUnreadable(size=20)
    stored = pickle.loads(pickle.dumps(build_index(source, ENCODER, tmp_path)))
    wanted = np.array([19, 0, 11, 8, 7, 0])
    assert stored.take(wanted) == LiveIndex(source, ENCODER).take(wanted)
    assert stored.take(wanted)[2].problem == "truncated"


def test_an_interrupted_index_goes_on_and_a_finished_one_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "PART_SAMPLES", 8)
    asked: list[int] = []

    class Killed(ToySource):
        def outline(self, index: int) -> Outline:
            asked.append(index)
            if index == 13 and asked.count(13) == 1:
                raise KeyboardInterrupt
            return super().outline(index)

    with pytest.raises(KeyboardInterrupt):
        build_index(Killed(), ENCODER, tmp_path)
    assert asked == list(range(14))
    build_index(Killed(), ENCODER, tmp_path)
    assert asked[14:] == list(range(8, 20))
    build_index(Killed(), ENCODER, tmp_path)
    assert len(asked) == 26


def test_an_index_is_not_used_for_other_data_or_another_tokenizer(tmp_path: Path) -> None:
    class Other(Encoder):
        @property
        def text_fingerprint(self) -> str:
            return "another"

    folders = {
        build_index(source, encoder, tmp_path).folder
        for source, encoder in (
            (ToySource(), ENCODER), (ToySource(size=19), ENCODER), (ToySource(), Other(processor())),
            (ToySource(turns="independent"), ENCODER), (ToySource(), ENCODER),
        )
    }  # fmt: skip
    assert len(folders) == 4


def test_an_image_that_comes_later_and_another_image_folder_are_measured(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(i), "image": f"{i}.png", "conversations": talk} for i in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()

    def sizes_and_problems(folder: str) -> list[Any]:
        source = LlavaJsonSource(str(tmp_path / "rows.json"), str(tmp_path / folder))
        index = build_index(source, ENCODER, tmp_path / "index")
        samples = index.take(np.arange(2))
        return [
            sample.problem.partition(":")[0] if sample.problem else sample.image_sizes for sample in samples
        ]

    picture(20, 10).save(tmp_path / "one" / "0.png")
    assert sizes_and_problems("one") == [((20, 10),), "missing_image"]
    picture(30, 10).save(tmp_path / "one" / "1.png")
    assert sizes_and_problems("one") == [((20, 10),), ((30, 10),)]
    picture(40, 10).save(tmp_path / "other" / "0.png")
    assert sizes_and_problems("other") == [((40, 10),), "missing_image"]


def test_stored_measurements_give_the_same_rows_as_live_ones(tmp_path: Path) -> None:
    index = build_index(ToySource(), ENCODER, tmp_path)
    stored = Mixture([WeightedSource(source=ToySource(), name="toy", index=index)])
    config = PlanConfig(row_tokens=100, window=8)
    planner = Planner([Phase(from_step=0, mixture=stored)], ENCODER, config)
    live = plan(ToySource(), row_tokens=100, window=8)
    assert [planner.window(0, 1, n) for n in range(3)] == [live.window(0, 1, n) for n in range(3)]


@given(
    exchanges=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=6),
    head=st.integers(0, 20),
    row_tokens=st.integers(1, 150),
)
def test_truncation_is_the_longest_prefix_in_budget(
    exchanges: list[tuple[int, int]], head: int, row_tokens: int
) -> None:
    sample = Measured(
        id="a", domain="d",
        tokens=(head, *(tokens for tokens, _ in exchanges)), images=(0, *(images for _, images in exchanges)),
        image_sizes=((16, 16),) * sum(images for _, images in exchanges),
    )  # fmt: skip
    planner = plan(ToySource(size=1), row_tokens=row_tokens, over_long="truncate_turns")
    per_image = ENCODER.image_costs([(16, 16)])[0].tokens
    costs = [
        head + sum(tokens + images * per_image for tokens, images in exchanges[:n])
        for n in range(1, len(exchanges) + 1)
    ]
    fitting = [n for n, cost in enumerate(costs, 1) if cost <= row_tokens]
    fate = planner._fate("toy", sample)
    if fitting:
        assert fate[:2] == (fitting[-1], costs[fitting[-1] - 1])
    else:
        assert fate[0] == "dropped"


def test_a_model_that_does_not_pack_gets_one_sample_a_row() -> None:
    class Alone(Encoder):
        packs = False

    planner = plan(ToySource(size=5), row_tokens=1000)
    planner.encoder = Alone(processor())
    assert [len(row) for row in planner.window(0, 0, 0).rows] == [1] * 5


def test_an_unknown_over_long_sample_is_named_with_its_source() -> None:
    with pytest.raises(UserError, match="sample a of `toy` has"):
        plan(several(), row_tokens=20, over_long="error").window(0, 0, 0)
