"""A model from scratch may start with a trained vision tower."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

from infinity_mm.errors import UserError
from infinity_mm.model.build import NANO, build_vision_config
from infinity_mm.model.parts import PartsSpec
from infinity_mm.model.vision_tower import VisionTower
from infinity_mm.training.config import DataConfig, StartConfig, TokenizerConfig
from infinity_mm.training.start import build_mixture, start_model
from infinity_mm.vision.slicing import plan_slices

DATA = DataConfig(
    kind="windtunnel",
    options={"world_seed": 0, "num_images": 8, "exchanges_per_image": 1, "tasks": {"caption_short": 1}},
)


def start(tower: Path | str, **sizes: int) -> StartConfig:
    spec = replace(NANO, text_layers=1, **sizes)
    return StartConfig(build=spec, tokenizer=TokenizerConfig(vocab_size=300), vision_tower=str(tower))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(5)
    VisionTower(build_vision_config(NANO)).save_pretrained(folder)
    return folder


def test_the_tower_of_the_folder_replaces_the_fresh_one(tower: Path) -> None:
    model = start_model(start(tower), build_mixture([DATA])).model
    wanted = VisionTower.from_pretrained(tower).state_dict()
    own = model.model.vision_tower.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in own)


def test_a_tower_of_other_sizes_is_refused(tower: Path) -> None:
    with pytest.raises(UserError, match="has other sizes"):
        start_model(start(tower, vision_layers=2), build_mixture([DATA]))
    with pytest.raises(UserError, match="has other sizes"):
        start_model(start(tower, vision_mlp=64), build_mixture([DATA]))


def test_a_folder_without_a_tower_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no vision tower"):
        start_model(start(tmp_path), build_mixture([DATA]))


def test_a_tower_beside_a_checkpoint_is_refused(tower: Path) -> None:
    with pytest.raises(UserError, match="checkpoint has a tower of its own"):
        StartConfig(path="anywhere", vision_tower=str(tower))


def test_a_checkpoint_may_go_on_without_slices(tmp_path: Path, tower: Path) -> None:
    started = start_model(start(tower), build_mixture([DATA]))
    started.model.save_pretrained(tmp_path)
    started.processor.save_pretrained(tmp_path)
    started = start_model(StartConfig(path=str(tmp_path), max_slices=0), build_mixture([DATA]))
    model = started.model
    assert model.config.slice_config() == started.processor.image_processor.slice_config()
    assert plan_slices(128, 128, model.config.slice_config()).grid is None


def test_a_model_starts_from_parts(tmp_path: Path, tower: Path) -> None:
    language = start_model(start(tower), build_mixture([DATA]))
    causal = Qwen2ForCausalLM(language.model.config.text_config)
    causal.save_pretrained(tmp_path)
    language.processor.tokenizer.save_pretrained(tmp_path)
    parts = PartsSpec(vision=str(tower), language=str(tmp_path), scale_px=64, connector="mlp")
    model = start_model(StartConfig(parts=parts), build_mixture([DATA])).model
    wanted = VisionTower.from_pretrained(tower).state_dict()
    assert all(
        torch.equal(weight, wanted[name]) for name, weight in model.model.vision_tower.state_dict().items()
    )
    assert torch.equal(model.lm_head.weight, causal.lm_head.weight)
    assert model.config.connector == "mlp"
