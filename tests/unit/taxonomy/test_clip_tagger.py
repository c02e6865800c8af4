"""open_clip models other than nano-clip, tiny and with random weights: what is loaded, and how scores come about."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from infinity_mm.taxonomy.calibration import Calibration, Curve
from infinity_mm.taxonomy.clip_tagger import ClipTagger
from infinity_mm.taxonomy.tagger import TaggerConfig, choose_tags

open_clip: Any = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PICTURES = [Image.new("RGB", (50, 30), color) for color in ("red", "blue")]


def tiny(folder: Path, name: str, **options: object) -> str:
    """A model that open_clip knows by name, with its weights in a file."""
    (folder / f"{name}.json").write_text(json.dumps(TINY | options))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors"
    )
    return f"{name}/{folder / name}.safetensors"


def words(folder: Path) -> str:
    (folder / "words.txt").write_text("red\nblue\nduck\n")
    return str(folder / "words.txt")


def test_a_clip_model_scores_each_tag_against_a_text_that_says_nothing(tmp_path: Path) -> None:
    model = tiny(tmp_path, "tiny-clip")
    config = TaggerConfig(model=model, vocabulary=words(tmp_path), prompt="a photo of {tag}")
    found = ClipTagger(config).scores(PICTURES)

    network, preprocess = open_clip.create_model_from_pretrained(*model.split("/", 1))
    tokenize = open_clip.get_tokenizer("tiny-clip")
    with torch.inference_mode():
        image = network.encode_image(preprocess(PICTURES[0])[None], normalize=True)
        text = network.encode_text(tokenize(["a photo of duck", "a photo"]), normalize=True)
        duck, nothing = (network.logit_scale.exp() * image @ text.T)[0].tolist()
    assert found[0]["duck"] == pytest.approx(1 / (1 + math.exp(nothing - duck)), abs=2e-4)
    assert list(found[0].values()) == sorted(found[0].values(), reverse=True)
    assert set(found[0]) == {"red", "blue", "duck"}


def test_a_model_trained_with_a_sigmoid_uses_its_own_bias(tmp_path: Path) -> None:
    model = tiny(tmp_path, "tiny-sigmoid", init_logit_bias=-9.0)
    found = ClipTagger(TaggerConfig(model=model, vocabulary=words(tmp_path))).scores(PICTURES)
    assert all(0 <= score < 0.9 for row in found for score in row.values())
    assert max(found[0].values()) < 1 / (1 + math.exp(9 - 1 / 0.07))


def test_other_weights_words_or_prompts_have_another_fingerprint(tmp_path: Path) -> None:
    model = tiny(tmp_path, "tiny-clip")
    vocabulary = words(tmp_path)
    fingerprints = {
        ClipTagger(TaggerConfig(model=model, vocabulary=vocabulary)).fingerprint,
        ClipTagger(TaggerConfig(model=model, vocabulary=vocabulary, prompt="a {tag}")).fingerprint,
        ClipTagger(TaggerConfig(model=model, vocabulary="general")).fingerprint,
        ClipTagger(TaggerConfig(model=tiny(tmp_path, "tiny-sigmoid", init_logit_bias=0.0))).fingerprint,
    }
    assert len(fingerprints) == 4
    assert ClipTagger(TaggerConfig(model=model, vocabulary=vocabulary, top_k=3)).fingerprint in fingerprints


def test_any_model_takes_a_calibration_and_says_so_of_its_tags(tmp_path: Path) -> None:
    model, vocabulary, file = tiny(tmp_path, "tiny-clip"), words(tmp_path), tmp_path / "calibration.json"
    plain = ClipTagger(TaggerConfig(model=model, vocabulary=vocabulary))
    curves = {"*": Curve(slope=0.5, offset=-1.0), "duck": Curve(at=(-99.0, 99.0), probability=(0.3, 0.3))}
    Calibration(tagger=plain.fingerprint, num_images=9, measured={}, curves=curves).save(file)
    config = TaggerConfig(model=model, vocabulary=vocabulary, calibration=str(file), min_score=0.0)
    calibrated = ClipTagger(config).scores(PICTURES)[0]
    logits = dict(zip(plain.vocabulary, plain.logits(PICTURES)[0].tolist()))
    assert calibrated["duck"] == 0.3
    assert calibrated["red"] == pytest.approx(1 / (1 + math.exp(1 - 0.5 * logits["red"])), abs=1e-4)
    assert all(tag.calibrated for tag in choose_tags(calibrated, config))
    assert not TaggerConfig(model=model).is_calibrated
