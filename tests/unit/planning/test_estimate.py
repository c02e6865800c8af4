from __future__ import annotations

from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.planning.estimate import ImageCost, Sums
from infinity_mm.planning.gpus import Gpu, GpuTable, Size, load_gpus, size_of
from infinity_mm.planning.image_tokens import image_tokens

NOBODY: dict[str, str] = {}


def image(kept: float, *, read: float = 100.0, written: float = 10.0, cached: float = 0.0) -> ImageCost:
    return ImageCost(
        calls={"ask": 1, "judge": 2},
        prompt_tokens={"ask": read, "judge": read},
        completion_tokens={"ask": written, "judge": 1},
        cached_tokens={"judge": cached},
        pairs_kept=kept,
    )


def test_images_that_are_all_alike_leave_no_doubt() -> None:
    total = Sums([image(2)] * 8, roles=NOBODY).total("prompt_tokens", 1000)
    assert (total.low, total.middle, total.high) == (200_000, 200_000, 200_000)


def test_the_interval_holds_the_mean_and_narrows_with_more_images() -> None:
    few = Sums([image(0), image(2)] * 4, roles=NOBODY).total("pairs_kept", 100)
    many = Sums([image(0), image(2)] * 100, roles=NOBODY).total("pairs_kept", 100)
    assert few.low < many.low < few.middle == many.middle == 100 < many.high < few.high


GPU = Gpu(tflops=1.0, bandwidth_gb_s=1.0, memory_gb=80, usd_per_hour=2.0)
TABLE = GpuTable(gpus={"toy": GPU}, prefill_share=0.5, decode_share=0.5, concurrency=10)
ONE_B = Size(total_b=1.0, active_b=1.0)


def test_speeds_are_the_roofline() -> None:
    read_s, written_s = TABLE.speeds(GPU, ONE_B)
    assert read_s == pytest.approx(2e9 / 0.5e12)  # 2 operations per parameter, half of the peak
    assert written_s == pytest.approx(2e9 / 0.5e9 / 10)  # 2 bytes per parameter, for ten replies at once
    experts = Size(total_b=1.0, active_b=0.1)
    assert TABLE.speeds(GPU, experts) == pytest.approx((read_s / 10, written_s))


def test_a_model_that_does_not_fit_takes_as_many_gpus_as_hold_it() -> None:
    assert TABLE.needed(GPU, Size(total_b=7, active_b=7)) == 1
    assert TABLE.needed(GPU, Size(total_b=72, active_b=72)) == 4


def test_cost_counts_what_is_read_and_written_by_each_model_and_nothing_from_the_cache() -> None:
    teacher, judge = ONE_B, Size(total_b=2.0, active_b=2.0)
    sums = Sums([image(1, cached=60)] * 3, roles={"ask": "teacher", "judge": "judge"})
    cost = sums.cost(30, gpu=GPU, table=TABLE, sizes={"teacher": teacher, "judge": judge})
    assert cost is not None
    one = 100 * 0.004 + 10 * 0.4 + 40 * 0.008 + 1 * 0.8
    assert cost.gpu_hours.middle == pytest.approx(30 * one / 3600)
    assert cost.gpu_hours_per_1000.middle == pytest.approx(1000 * one / 3600)
    assert cost.usd_per_1000.high == pytest.approx(2 * cost.gpu_hours_per_1000.high)


def test_no_cost_without_a_size_or_without_a_kept_pair() -> None:
    assert Sums([image(1)], roles=NOBODY).cost(1, gpu=GPU, table=TABLE, sizes={"teacher": None}) is None
    assert Sums([image(0)], roles=NOBODY).cost(1, gpu=GPU, table=TABLE, sizes={"teacher": ONE_B}) is None


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", (7.0, 7.0)),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", (30.0, 3.0)),
        ("OpenGVLab/InternVL3-8B", (8.0, 8.0)),
        ("/models/Aquila-VL-2B-llava-qwen/", (2.0, 2.0)),
        ("gpt-4o", None),
        ("openbmb/MiniCPM-V-4_5", None),
    ],
)
def test_sizes_are_read_from_names(model: str, size: tuple[float, float] | None) -> None:
    found = size_of(model)
    assert (None if found is None else (found.total_b, found.active_b)) == size


def test_a_folder_without_a_size_in_its_name_is_weighed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.safetensors").write_bytes(b"\0" * 4000)
    assert size_of(str(tmp_path / "model")) == Size(total_b=2e-6, active_b=2e-6)


def test_the_table_that_ships_loads_and_an_unknown_gpu_is_refused() -> None:
    table = load_gpus()
    assert table.pick(("H100",)) == {"H100": table.gpus["H100"]}
    assert table.pick(()) == table.gpus
    with pytest.raises(UserError, match="no GPU `H900`"):
        table.pick(("H900",))


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("Qwen/Qwen2.5-VL-7B", (280, 140), 50),
        ("Qwen/Qwen3-VL-8B", (320, 320), 100),
        ("Qwen/Qwen2-VL-7B", (40_000, 40_000), 16_384),
        ("OpenGVLab/InternVL3-8B", (448, 448), 256),
        ("OpenGVLab/InternVL3-8B", (1792, 1344), 13 * 256),
        ("somebody/else", (280, 280), 100),
    ],
)
def test_tokens_of_an_image_by_family(model: str, size: tuple[int, int], tokens: int) -> None:
    assert image_tokens(model, *size)[0] == tokens


def test_an_image_that_is_scaled_down_before_it_is_sent_takes_fewer_tokens() -> None:
    assert image_tokens("qwen2.5-vl", 2800, 1400, longest_px=280) == image_tokens("qwen2.5-vl", 280, 140)
