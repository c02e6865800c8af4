"""RAM++ through a made-up `ram` package that is called as the real one is, which cannot be installed here."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infinity_mm.errors import UserError
from infinity_mm.taxonomy.tag_pass import TagPass
from infinity_mm.taxonomy.tagger import TaggerConfig, open_tagger


class RamPlus(torch.nn.Module):
    """Its logits are the mean brightness times 1, 2 and 3; the third tag is switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.tag_list = np.array(["bright", "snow", "never", "white"])
        self.delete_tag_index = [2]
        self.class_threshold = torch.full((4,), 0.6)
        self.fc = torch.nn.Linear(1, 1)
        with torch.no_grad():
            self.fc.weight.fill_(1.0)
            self.fc.bias.zero_()

    def generate_tag(self, image: torch.Tensor) -> tuple[list[str], list[str]]:
        embedded = image.mean(dim=(1, 2, 3))[:, None, None] * torch.arange(1.0, 5.0)[None, :, None]
        logits = self.fc(embedded).squeeze(-1)
        said = [" | ".join(self.tag_list[row > 0]) for row in logits.numpy()]
        return said, said


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    calls: dict[str, Any] = {}

    def ram_plus(*, pretrained: str, image_size: int, vit: str) -> RamPlus:
        calls.update(pretrained=pretrained, image_size=image_size, vit=vit)
        return RamPlus()

    def get_transform(*, image_size: int) -> Any:
        return lambda picture: torch.from_numpy(np.array(picture.resize((4, 4)))).movedim(-1, 0) / 255

    package, models = ModuleType("ram"), ModuleType("ram.models")
    package.get_transform, models.ram_plus = get_transform, ram_plus  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ram", package)
    monkeypatch.setitem(sys.modules, "ram.models", models)
    file = tmp_path / "ram_plus.pth"
    file.write_bytes(b"weights")
    return str(file)


def test_every_tag_that_is_on_gets_the_sigmoid_of_its_logit(weights: str) -> None:
    tagger = open_tagger(TaggerConfig(model=f"ram:{weights}"))
    white, black = tagger.scores([Image.new("RGB", (9, 9), color) for color in ("white", "black")])
    assert white == {
        tag: pytest.approx(1 / (1 + math.exp(-n)), abs=1e-4)
        for tag, n in (("white", 4), ("snow", 2), ("bright", 1))
    }
    assert set(black.values()) == {0.5}
    assert not TaggerConfig(model=f"ram:{weights}").is_calibrated


def test_without_the_package_or_the_weights_the_error_says_what_to_do(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no weights /nowhere"):
        open_tagger(TaggerConfig(model="ram:/nowhere"))
    monkeypatch.setitem(sys.modules, "ram", None)
    with pytest.raises(UserError, match=r"pip install git\+https"):
        open_tagger(TaggerConfig(model=f"ram:{weights}"))


@pytest.mark.parametrize("model", ["ram:{}/model.pth", "local-dir:{}", "ViT-B-32/{}/model.pth"])
def test_other_weights_under_the_same_name_are_another_tag_pass(tmp_path: Path, model: str) -> None:
    tags = TagPass(config=TaggerConfig(model=model.format(tmp_path)))
    file = tmp_path / "model.pth"
    fingerprints = [tags.fingerprint()]
    for weights in (b"one", b"other"):
        file.write_bytes(weights)
        os.utime(file, ns=(0, len(weights)))  # whatever the clock's grain
        fingerprints.append(tags.fingerprint())
    assert len(set(fingerprints)) == 3
