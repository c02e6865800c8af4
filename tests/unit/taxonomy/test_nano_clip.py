from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from infinity_mm.config import load_config
from infinity_mm.errors import UserError
from infinity_mm.taxonomy.clip_tagger import ClipTagger
from infinity_mm.taxonomy.tagger import TaggerConfig, choose_tags
from infinity_mm.windtunnel import tags, world
from infinity_mm.windtunnel.clip import NANO_CLIP, ClipShape, NanoClip
from infinity_mm.windtunnel.clip_tokenizer import NanoTokenizer
from infinity_mm.windtunnel.clip_training import (
    ClipTraining,
    average_precision,
    calibrate,
    calibration_error,
    train_clip,
)

TOKENIZER = NanoTokenizer(("a", "b", "c", "red", "star"), context_length=6)


def test_a_known_word_is_one_token_and_an_unknown_one_its_letters() -> None:
    assert TOKENIZER(["Red star", "cab!"]).tolist() == [[1, 6, 7, 8, 0, 0], [1, 5, 3, 4, 2, 8]]


def test_a_text_that_is_too_long_keeps_its_beginning_and_its_end_token() -> None:
    assert TOKENIZER("red " * 9).tolist() == [[1, 6, 6, 6, 6, 8]]


def test_the_worlds_tokenizer_knows_every_tag_word() -> None:
    tokenizer = NanoTokenizer.of_the_world(32)
    lengths = (tokenizer(tags.VOCABULARY) > 0).sum(dim=1).tolist()
    assert lengths == [len(tag.split()) + 2 for tag in tags.VOCABULARY]


def test_average_precision_counts_the_ranks_of_the_right_ones() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert average_precision(scores, torch.tensor([True, False, True, False])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert average_precision(scores, torch.tensor([True, True, False, False])) == 1


def test_calibration_gives_probabilities_that_come_true() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand((4000, len(tags.VOCABULARY)), generator=generator) * 2 - 1
    targets = (torch.rand(similarity.shape, generator=generator) < torch.sigmoid(6 * similarity - 2)).float()
    found = calibrate(similarity, targets)
    assert found["*"].slope == pytest.approx(6, rel=0.05)
    assert found["red"].offset == pytest.approx(-2, rel=0.2)
    assert calibration_error(torch.sigmoid(6 * similarity - 2), targets > 0) < 0.01


def test_a_saved_model_gives_the_same_scores_and_holds_no_pickle(tmp_path: Path) -> None:
    config = ClipTraining(
        output_dir=str(tmp_path),
        num_scenes=8,
        num_steps=2,
        warmup_steps=1,
        batch_images=4,
        num_calibration_scenes=8,
        num_held_out_scenes=8,
        shape=ClipShape(image_px=32, text_width=32, text_layers=1, embedding=16),
    )
    model, metrics = train_clip(config, report=lambda line: None)
    model.save(tmp_path)
    loaded = NanoClip.load(tmp_path)
    picture = Image.new("RGB", (70, 40), "red")
    with torch.inference_mode():
        first, second = (
            m.model.encode_image(m.preprocess(picture)[None], normalize=True) for m in (model, loaded)
        )
    torch.testing.assert_close(first, second)
    assert loaded.calibration == model.calibration
    assert metrics["held_out_scenes"] == 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert ClipTagger(TaggerConfig(model=str(tmp_path))).scores([picture])[0].keys() == set(tags.VOCABULARY)


def test_a_folder_without_a_model_is_an_error_that_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        NanoClip.load(tmp_path)


def test_the_shipped_configuration_is_valid() -> None:
    config = load_config(ClipTraining, Path(__file__).parents[3] / "configs/train/nano_clip.yaml")
    assert config.num_threads == 1


def test_the_shipped_model_is_small_and_tags_held_out_scenes() -> None:
    assert sum(file.stat().st_size for file in NANO_CLIP.iterdir()) < 3_400_000
    config = TaggerConfig()
    scenes = [world.sample_scene(world_seed=5, index=index, split="held_out") for index in range(60)]
    found = ClipTagger(config).scores([world.render(scene) for scene in scenes])
    said = [{tag.name for tag in choose_tags(scores, config)} for scores in found]
    right = [set(tags.tags(scene)) for scene in scenes]
    hits = sum(len(a & b) for a, b in zip(said, right))
    assert hits / sum(map(len, said)) > 0.95
    assert hits / sum(map(len, right)) > 0.95
