"""The markers around image tokens, in text and in ids."""

from dataclasses import replace
from typing import Literal

import pytest
from tiny_vlm import tokenizer

from infinity_mm.errors import UserError
from infinity_mm.model.schema import SchemaIds, SchemaTokens, image_text, image_token_ids, num_sequence_tokens
from infinity_mm.vision.slicing import SliceConfig, plan_slices

IDS = SchemaIds(image=0, image_start=1, image_end=2, slice=3, row=4)
CONFIG = SliceConfig(scale_px=4, max_slices=4, patch_px=2)


def test_an_image_that_is_not_sliced_has_no_slice_markers() -> None:
    assert image_token_ids(plan_slices(4, 4, CONFIG), IDS) == [1, 0, 0, 0, 0, 2]


def test_slices_are_marked_and_rows_end() -> None:
    plan = plan_slices(8, 8, CONFIG)
    assert plan.grid == (2, 2)
    one_slice = [3, 0, 0, 0, 0]
    assert image_token_ids(plan, IDS) == [
        1,
        0,
        0,
        0,
        0,
        *one_slice,
        *one_slice,
        4,
        *one_slice,
        *one_slice,
        4,
        2,
    ]


def test_the_overview_may_come_last() -> None:
    config = replace(CONFIG, overview="last")
    plan = plan_slices(16, 4, config)
    assert plan.grid == (4, 1)
    assert plan.overview_size == (8, 2)
    one_slice = [3, 0, 0, 0, 0]
    assert image_token_ids(plan, IDS) == [1, *one_slice * 4, 4, 0, 0, 0, 0, 2]
    assert image_token_ids(plan_slices(4, 4, config), IDS) == [1, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("overview", ["first", "last"])
def test_text_tokenises_to_the_same_ids(overview: Literal["first", "last"]) -> None:
    plan, tokens = plan_slices(16, 8, replace(CONFIG, overview=overview)), SchemaTokens()
    text = image_text(plan, tokens)
    assert tokenizer().encode(text, add_special_tokens=False) == image_token_ids(
        plan, tokens.ids(tokenizer())
    )


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (16, 4), (3, 9)])
def test_sequence_length_is_known_from_the_plan(size: tuple[int, int]) -> None:
    plan = plan_slices(*size, CONFIG)
    assert num_sequence_tokens(plan) == len(image_token_ids(plan, IDS))


def test_a_tokenizer_without_the_tokens_is_refused() -> None:
    class Bare:
        def get_vocab(self) -> dict[str, int]:
            return {"<|image|>": 0}

    with pytest.raises(UserError, match=r"no <\|image_start\|>"):
        SchemaTokens().ids(Bare())
