"""A zero-shot tagger: an open_clip model and a vocabulary.

    pictures --image tower--> \\
    tags ------text tower--> cosines --the model's bias, or against a neutral text--> logits

The logit is that of the model's own loss where it was trained with a sigmoid for each pair (SigLIP); of others it is
how much better the tag fits than `a photo`, which says nothing. `nano-clip` brings a calibration with it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from infinity_mm.errors import explain, need
from infinity_mm.record import canonical_json, digest
from infinity_mm.taxonomy.tagger import LogitTagger, TaggerConfig
from infinity_mm.taxonomy.vocabulary import load_vocabulary

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


_MODEL_FILES = (".json", ".safetensors", ".bin", ".pt", ".pth")


@final
class ClipTagger(LogitTagger):
    """Any open_clip model, nano-clip included."""

    def __init__(self, config: TaggerConfig) -> None:
        vocabulary = load_vocabulary(config.vocabulary)
        texts = [config.prompt.format(tag=tag) for tag in vocabulary]
        self._loaded = _load_nano(config.model, vocabulary, texts) or _load_open_clip(config.model, texts)
        fingerprint = digest(
            "clip-tagger", self._loaded.fingerprint, canonical_json(list(vocabulary)), config.prompt
        )
        super().__init__(config, vocabulary, fingerprint)

    def logits(self, pictures: Sequence[Image]) -> torch.Tensor:
        """One forward pass for all pictures."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self._loaded.preprocess(picture) for picture in pictures])
            return self._loaded.to_logits(self._loaded.model.encode_image(pixels, normalize=True))


def weights_on_disk(model: str) -> str:
    """What can be said of a model without loading it: the hash of its files where they are here, else its name."""
    kind, _, place = model.partition(":")
    named = Path(place if kind in ("ram", "local-dir") else model.partition("/")[2])
    local = _nano_folder(model) or named
    files = [local] if local.is_file() else []
    if local.is_absolute() and local.is_dir():
        files = sorted(file for file in local.iterdir() if file.suffix in _MODEL_FILES)
    hashes = [_file_hash(file, file.stat().st_mtime_ns) for file in files if file.name != "metrics.json"]
    return digest(*hashes) if hashes else model


@cache
def _file_hash(file: Path, changed_ns: int) -> str:
    """Once in a process as long as the file is not changed: weights are large, and asked about several times."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    model: Any
    preprocess: Callable[[Image], torch.Tensor]
    to_logits: Callable[[torch.Tensor], torch.Tensor]
    fingerprint: str


def _nano_folder(model: str) -> Path | None:
    from infinity_mm.windtunnel.clip import NANO_CLIP

    folder = NANO_CLIP if model == "nano-clip" else Path(model) if os.path.isabs(model) else None
    if folder is not None and not folder.is_dir():
        raise explain(
            what=f"there is no model folder {folder}",
            where="tagger.model (configuration)",
            fix="train one with `python train/clip.py --config configs/train/nano_clip.yaml`",
        )
    return folder


def _load_nano(model: str, vocabulary: Sequence[str], texts: Sequence[str]) -> _Loaded | None:
    import torch

    from infinity_mm.windtunnel.clip import NanoClip

    folder = _nano_folder(model)
    if folder is None:
        return None
    nano = NanoClip.load(folder)
    with torch.inference_mode():
        text = nano.model.encode_text(nano.tokenizer(texts), normalize=True)
    calibrations = [nano.calibration.get(tag, nano.calibration["*"]) for tag in vocabulary]
    slope = torch.tensor([calibration.slope for calibration in calibrations])
    offset = torch.tensor([calibration.offset for calibration in calibrations])
    return _Loaded(
        model=nano.model,
        preprocess=nano.preprocess,
        to_logits=lambda image: slope * (image @ text.T) + offset,
        fingerprint=weights_on_disk(model),
    )


def _load_open_clip(model: str, texts: Sequence[str]) -> _Loaded:
    try:
        import open_clip
    except ImportError as error:
        raise need("open_clip", extra="synth", purpose="tagging images") from error
    import torch

    # `hf-hub:owner/name` and `local-dir:/path` have slashes of their own and bring their weights with them.
    name, pretrained = (model, None) if model.startswith(("hf-hub:", "local-dir:")) else _split(model)
    # open_clip's annotations are unions over its options; this is what these options give.
    loaded: Any = open_clip.create_model_from_pretrained(name, pretrained=pretrained)
    network, preprocess = loaded
    network.eval()
    neutral = "a photo"
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)([*texts, neutral])
        text = network.encode_text(tokens, normalize=True)
        scale = network.logit_scale.exp()
        bias = getattr(network, "logit_bias", None)

    def to_logits(image: torch.Tensor) -> torch.Tensor:
        cosines = image @ text.T
        if bias is not None:  # trained with a sigmoid per pair: its own probability
            return scale * cosines[:, :-1] + bias
        # A softmax over all tags would make them rivals; an image has many. So each against a text that says nothing.
        return scale * (cosines[:, :-1] - cosines[:, -1:])

    return _Loaded(
        model=network,
        preprocess=preprocess,
        to_logits=to_logits,
        fingerprint=digest(model, open_clip.__version__, state_hash(network)),
    )


def _split(model: str) -> tuple[str, str]:
    name, slash, pretrained = model.partition("/")
    if not slash:
        raise explain(
            what=f"`{model}` names no tagger",
            where="tagger.model (configuration)",
            fix="give nano-clip, an absolute path, or name/pretrained such as ViT-B-32/laion2b_s34b_b79k",
        )
    return name, pretrained


def state_hash(network: Any) -> str:
    """Names can be pointed at other weights; the weights themselves cannot."""
    hasher = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.contiguous().cpu().numpy().tobytes())
    return hasher.hexdigest()
