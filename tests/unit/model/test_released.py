"""Released checkpoints: as our model they answer as transformers' own code does, in either naming."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_onevision import theirs, write_llava_next, write_transformers
from tiny_vlm import picture

from infinity_mm.errors import UserError
from infinity_mm.model.load import load_model
from infinity_mm.model.released import LLAVA_NEXT, TRANSFORMERS, our_name

SIZES = [(30, 30), (200, 30), (41, 97), (500, 480), (1, 60)]
QUESTION = "<|im_start|>user\n{images}What colour is the circle?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "transformers"
    write_transformers(folder)
    return folder


@pytest.fixture(scope="module")
def next_folder(transformers_folder: Path) -> Path:
    folder = transformers_folder.parent / "next"
    write_llava_next(transformers_folder, folder)
    return folder


def logits(model: Any, processor: Any, images: Sequence[Sequence[Image.Image]]) -> torch.Tensor:
    """Of one row per entry of `images`, each in a batch of its own; the images of an entry are one sample's."""
    rows = []
    for pictures in images:
        text = QUESTION.format(images=processor.image_token * len(pictures))
        inputs = processor(text=[text], images=[list(pictures)] if pictures else None, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0])
    return torch.cat(rows)


@pytest.mark.parametrize("naming", ["transformers", "next"])
def test_logits_equal_those_of_transformers(transformers_folder: Path, next_folder: Path, naming: str) -> None:
    model, processor = load_model(transformers_folder if naming == "transformers" else next_folder)
    samples = [
        [],
        *([picture(*size, seed=seed)] for seed, size in enumerate(SIZES)),
        [picture(200, 30), picture(30, 90)],
    ]
    ours = logits(model.eval(), processor, samples)
    expected = logits(*theirs(transformers_folder), samples)
    vocab = min(ours.shape[1], expected.shape[1])  # LLaVA-NeXT has no image token of its own, so we add one
    assert ours.shape[0] == expected.shape[0] > 49 * 10
    torch.testing.assert_close(ours[:, :vocab], expected[:, :vocab], atol=1e-4, rtol=0)
    assert expected.std() > 0.1
