from __future__ import annotations

import random
from unittest.mock import patch

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from infinity_mm.dedup import images
from infinity_mm.dedup.images import choose_bands, near_pairs, phash


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))


@pytest.mark.parametrize("seed", range(40))
def test_the_hash_has_the_same_bits_as_imagehash(seed: int) -> None:
    rng = random.Random(seed)
    picture = noise(seed, (rng.randint(20, 300), rng.randint(20, 300)))
    assert phash(picture) == str(imagehash.phash(picture))


def test_the_hash_survives_scaling_and_compression_noise() -> None:
    picture = noise(1, (200, 150))
    smaller = picture.resize((120, 90))
    assert near_pairs([phash(picture), phash(smaller)], 6).tolist() == [[0, 1]]


def test_a_flat_or_mirrored_picture_has_no_bits_from_rounding_noise() -> None:
    flat = [phash(Image.new("L", (size, size), grey)) for size, grey in ((32, 7), (64, 200), (50, 255))]
    assert set(flat) == {"8000000000000000"}
    half = noise(2, (16, 32)).resize((16, 32))
    mirrored = Image.new("RGB", (32, 32))
    mirrored.paste(half, (0, 0))
    mirrored.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (16, 0))
    odd_columns = 0x5555555555555555
    assert int(phash(mirrored), 16) & odd_columns == 0


def brute_force(hashes: list[str], radius: int) -> list[list[int]]:
    words = [int(text, 16) for text in hashes]
    return [
        [i, j]
        for i in range(len(words))
        for j in range(i + 1, len(words))
        if (words[i] ^ words[j]).bit_count() <= radius
    ]


@settings(max_examples=150, deadline=None)
@given(
    centers=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    flips=st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=9)), max_size=40),
    radius=st.integers(0, 8),
    num_agreeing=st.integers(1, 4),
)
def test_near_pairs_are_those_of_brute_force_with_any_number_of_bands(
    centers: list[int], flips: list[tuple[int, set[int]]], radius: int, num_agreeing: int
) -> None:
    words = [centers[c % len(centers)] ^ sum(1 << bit for bit in bits) for c, bits in flips]
    hashes = [f"{word:016x}" for word in words]
    with patch.object(images, "choose_bands", lambda num_hashes, radius: num_agreeing):
        assert near_pairs(hashes, radius).tolist() == brute_force(hashes, radius)


def test_planted_pairs_are_found_among_many() -> None:
    rng = random.Random(3)
    words = [rng.getrandbits(64) for _ in range(20_000)]
    planted = [(word, word ^ sum(1 << bit for bit in rng.sample(range(64), 5))) for word in words[:200]]
    hashes = [f"{word:016x}" for word in words + [twin for _, twin in planted]]
    found = {tuple(pair) for pair in near_pairs(hashes, 5).tolist()}
    assert {(i, 20_000 + i) for i in range(200)} <= found
    assert len(found) == 200


def test_a_larger_set_uses_more_selective_tables() -> None:
    assert choose_bands(1_000_000, 5) > choose_bands(1_000, 5) == 1


def test_equal_hashes_are_pairs_at_radius_zero() -> None:
    assert near_pairs(["00000000000000ff", "0" * 16, "00000000000000ff"], 0).tolist() == [[0, 2]]


def test_no_hashes_give_no_pairs() -> None:
    assert near_pairs([], 5).shape == (0, 2)


def test_a_radius_that_makes_everything_a_neighbour_is_refused() -> None:
    with pytest.raises(ValueError, match="radius=40"):
        near_pairs([], 40)
