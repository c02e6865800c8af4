"""Stages as data: what a file resolves to, and which stage runs when."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_run import tiny_config

from infinity_mm.config import to_plain
from infinity_mm.errors import UserError
from infinity_mm.training import loop
from infinity_mm.training.config import SftConfig
from infinity_mm.training.curriculum import Stage, load_stages, run_stages
from infinity_mm.training.optim import trained_parts
from infinity_mm.training.sft import train

CONFIGS = Path(__file__).parents[3] / "configs" / "train"


def curriculum(tmp_path: Path, **stages: Any) -> Path:
    plain = to_plain(tiny_config(tmp_path / "runs"))
    del plain["model"]["path"], plain["model"]["scale_px"], plain["model"]["max_slices"]
    file = tmp_path / "curriculum.yaml"
    file.write_text(yaml.safe_dump(plain | {"stages": stages}, sort_keys=False))
    return file


THREE = {
    "first": {"steps": 3, "vision_tower": {"freeze": True}},
    "second": {"steps": 4, "model": {"max_slices": 1}, "connector": {"lr": 0.5}},
    "third": {"steps": 3},
}


def run(file: Path, *overrides: str, only: str | None = None) -> list[str]:
    said: list[str] = []
    stages = load_stages(file, overrides)
    run_stages(stages, lambda c: train(c, quiet=True).model_dir is not None, only=only, say=said.append)
    return said


def model_bytes(tmp_path: Path, stage: str) -> bytes:
    return (tmp_path / "runs" / stage / "model" / "model.safetensors").read_bytes()


def test_a_stage_is_the_common_keys_with_its_own_on_top_and_starts_from_the_one_before(
    tmp_path: Path,
) -> None:
    first, second, third = (s.config for s in load_stages(curriculum(tmp_path, **THREE)))
    assert (first.steps, second.steps, third.steps) == (3, 4, 3)
    assert first.model.build is not None
    assert second.model.path == str(tmp_path / "runs" / "first" / "model")
    assert (second.model.max_slices, third.model.max_slices) == (1, None)
    assert (second.connector.lr, third.connector.lr) == (0.5, 1e-3)
    assert trained_parts(first) == ["connector", "language_model"]
    assert trained_parts(second) == ["vision_tower", "connector", "language_model"]


def test_overrides_hold_for_all_stages_or_for_the_one_they_name(tmp_path: Path) -> None:
    file = curriculum(tmp_path, **THREE)
    stages = load_stages(file, ["row_tokens=640", "stages.second.steps=9", f"out_dir={tmp_path}/other"])
    assert [s.config.row_tokens for s in stages] == [640, 640, 640]
    assert [s.config.steps for s in stages] == [3, 9, 3]
    assert stages[1].config.model.path == str(tmp_path / "other" / "first" / "model")


def test_a_mistake_in_any_stage_is_found_at_once_and_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key `connector.learning_rate`\n.*stage third"):
        load_stages(curriculum(tmp_path, **THREE | {"third": {"connector": {"learning_rate": 1}}}))
    with pytest.raises(UserError, match="the stage names model"):
        load_stages(curriculum(tmp_path, **THREE | {"third": {"model": {"path": "x"}}}))
    with pytest.raises(UserError, match="there is no stage `fourth`"):
        run(curriculum(tmp_path, **THREE), only="fourth")


def test_a_file_without_stages_is_a_curriculum_of_one(tmp_path: Path) -> None:
    (stage,) = load_stages(CONFIGS / "tiny.yaml", [f"out_dir={tmp_path}"])
    assert (stage.name, stage.model_dir) == ("", tmp_path / "model")


def test_stages_killed_between_and_within_end_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(curriculum(whole, **THREE))
    run(curriculum(broken, **THREE), only="first")  # killed between two stages
    local_loss, calls = loop.local_loss, iter(range(100))

    def die(*args: Any, **keys: Any) -> Any:
        if next(calls) == 6:  # in the fourth of four steps of two micro-batches
            raise KeyboardInterrupt
        return local_loss(*args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "local_loss", die)
        with pytest.raises(KeyboardInterrupt):
            run(curriculum(broken, **THREE))
    said = run(curriculum(broken, **THREE))
    assert [line.split(",")[0].split(" (")[0] for line in said] == [
        "stage first: finished", "stage second", "stage third"
    ]  # fmt: skip
    for stage in THREE:
        assert model_bytes(broken, stage) == model_bytes(whole, stage)
    before = model_bytes(broken, "third")
    assert all("finished" in line for line in run(curriculum(broken, **THREE)))
    assert model_bytes(broken, "third") == before


def test_one_stage_alone_needs_the_one_before_and_a_finished_one_must_still_be_the_same(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="stage second starts from stage first, which is not finished"):
        run(curriculum(tmp_path, **THREE), only="second")
    run(curriculum(tmp_path, **THREE), only="first")
    changed = THREE | {"first": {"steps": 2, "vision_tower": {"freeze": True}}}
    with pytest.raises(
        UserError, match=r"stage first is finished, with another configuration; steps: 3 -> 2"
    ):
        run(curriculum(tmp_path, **changed))


def test_a_stage_that_is_asked_to_stop_ends_the_curriculum(tmp_path: Path) -> None:
    stages = load_stages(curriculum(tmp_path, **THREE))
    seen: list[SftConfig] = []

    def interrupted(config: SftConfig) -> bool:
        seen.append(config)
        return False

    run_stages(stages, interrupted, say=lambda _: None)
    assert seen == [stages[0].config]


def rates(stage: Stage) -> dict[str, float]:
    return {part: getattr(stage.config, part).lr for part in trained_parts(stage.config)}


def test_the_aquila_preset_has_the_papers_stages() -> None:
    stages = load_stages(CONFIGS / "aquila_vl_2b" / "curriculum.yaml")
    assert [s.name for s in stages] == ["stage_1", "stage_2a", "stage_2b", "stage_2c", "stage_3", "stage_4"]
    assert [s.config.model.max_grid for s in stages] == [0, 2, 3, 4, 6, 6]
    assert [s.config.model.max_tiles for s in stages] == [None, 4, 5, 6, 9, 9]
    assert rates(stages[0]) == {"connector": 1e-3}
    everything = {"vision_tower": 2e-6, "connector": 1e-5, "language_model": 1e-5}
    assert all(rates(stage) == everything for stage in stages[1:])
    assert all(s.config.epochs == 1 and s.config.schedule.warmup_fraction == 0.03 for s in stages)


def test_the_yi_vl_preset_has_other_stages_and_needs_no_other_code() -> None:
    one, two, three = load_stages(CONFIGS / "yi_vl" / "curriculum.yaml")
    assert [s.config.model.scale_px for s in (one, two, three)] == [224, 448, 448]
    assert rates(one) == rates(two) == {"vision_tower": 1e-4, "connector": 1e-4}
    assert rates(three) == {"vision_tower": 2e-5, "connector": 2e-5, "language_model": 2e-5}
    assert [s.config.grad_clip for s in (one, two, three)] == [0.5, 0.5, 1.0]
    assert [s.config.epochs for s in (one, two, three)] == [1, 1, 2]
    assert {source.cap for source in three.config.data} == {50_000}


@pytest.mark.parametrize("name", ["aquila_vl_2b", "yi_vl"])
def test_presets_measure_their_data_once_and_round_weights_only_at_the_end(name: str) -> None:
    configs = [stage.config for stage in load_stages(CONFIGS / name / "curriculum.yaml")]
    assert all(config.index_dir is not None for config in configs)
    assert {config.save_dtype for config in configs[:-1]} == {"float32"}
    assert configs[-1].save_dtype == "bfloat16"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda f: str(f.relative_to(CONFIGS)))
def test_every_training_configuration_is_read_strictly(file: Path) -> None:
    if "output_dir" not in yaml.safe_load(
        file.read_text()
    ):  # those belong to other programs, which test them
        assert load_stages(file)
