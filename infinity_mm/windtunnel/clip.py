"""nano-clip: a small open_clip model that tags drawn images, and its folder of safetensors and JSON.

folder --config.json, model.safetensors--> open_clip.CLIP + tokenizer + preprocessing + calibration
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from infinity_mm.config import build
from infinity_mm.errors import explain, need
from infinity_mm.windtunnel.clip_tokenizer import NanoTokenizer

if TYPE_CHECKING:
    from open_clip import CLIP

NANO_CLIP = Path(__file__).parent / "models" / "nano-clip"
"""The folder that ships in the package."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Sizes of the two towers."""

    image_px: int = 64
    """Side of the square that every image is squeezed into."""
    vision_layers: int | tuple[int, ...] = (1, 1, 1, 1)
    """Four numbers: blocks in the stages of a residual network; one number: layers of a vision transformer. A
    transformer of 4 layers had not learned shapes after 160,000 images, 40,000 of them of shapes."""
    vision_width: int = 16
    """Channels of the network's first stage, the last has 32 times as many; or width of the transformer."""
    patch_px: int = 8
    """Patch side of the transformer; the residual network has none."""
    text_width: int = 96
    text_layers: int = 2
    context_tokens: int = 32
    embedding: int = 128

    def build(self, vocab_size: int) -> CLIP:
        """An open_clip model with random weights."""
        try:
            import open_clip
        except ImportError as error:
            raise need("open_clip", extra="synth", purpose="tagging images") from error
        return open_clip.CLIP(
            embed_dim=self.embedding,
            vision_cfg={
                "image_size": self.image_px,
                "width": self.vision_width,
                "layers": self.vision_layers,
                "patch_size": self.patch_px,
                "head_width": 32,
            },  # type: ignore[arg-type]
            text_cfg={
                "context_length": self.context_tokens,
                "vocab_size": vocab_size,
                "width": self.text_width,
                "layers": self.text_layers,
                "heads": self.text_width // 32,
            },  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Turns a cosine into a probability: `sigmoid(slope * cosine + offset)`."""

    slope: float
    offset: float


@dataclass(frozen=True, kw_only=True)
class NanoClip:
    """A loaded model with all that is needed to use it."""

    shape: ClipShape
    model: CLIP
    tokenizer: NanoTokenizer
    calibration: Mapping[str, Calibration]
    """Tag -> its own calibration, fitted on training scenes; `*` is for all other texts."""

    def preprocess(self, picture: Image.Image) -> torch.Tensor:
        """One RGB picture as a (3, image_px, image_px) tensor from -1 to 1."""
        return to_tensor(squeeze(picture, self.shape.image_px))

    def save(self, folder: Path) -> None:
        """Write `config.json` and half-precision `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "shape": asdict(self.shape),
            "tokens": list(self.tokenizer.tokens),
            "calibration": {tag: asdict(value) for tag, value in self.calibration.items()},
        }
        (folder / "config.json").write_text(
            json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        state = {name: _half(value).contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> NanoClip:
        """Read what `save` wrote, in float32 and ready to use."""
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            state = load_file(folder / "model.safetensors")
        except FileNotFoundError as error:
            raise explain(
                what=f"{folder} is not a nano-clip folder: {error.filename or 'model.safetensors'} is missing",
                where="tagger.model (configuration)",
                fix="train one with `python train/clip.py --config configs/train/nano_clip.yaml`",
            ) from error
        shape = build(ClipShape, config["shape"], where=str(folder / "config.json"))
        tokenizer = NanoTokenizer(tuple(config["tokens"]), shape.context_tokens)
        model = shape.build(tokenizer.vocab_size)
        model.load_state_dict(state)  # copies into the model's own float32
        calibration = {tag: Calibration(**value) for tag, value in config["calibration"].items()}
        return cls(shape=shape, model=model.eval(), tokenizer=tokenizer, calibration=calibration)


def round_weights(model: CLIP) -> None:
    """Give a model in memory the weights that `NanoClip.save` writes, so that figures are those of the file."""
    model.load_state_dict({name: _half(value) for name, value in model.state_dict().items()})


def _half(value: torch.Tensor) -> torch.Tensor:
    """Half precision, except for counters."""
    return value.half() if value.is_floating_point() else value


def squeeze(picture: Image.Image, side_px: int) -> np.ndarray:
    """An RGB picture as a square of 8-bit values; the aspect ratio is given up, which tags survive."""
    return np.asarray(picture.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """8-bit (..., height, width, 3) to float32 (..., 3, height, width) from -1 to 1."""
    return torch.from_numpy(np.array(pixels)).movedim(-1, -3).float() / 127.5 - 1
