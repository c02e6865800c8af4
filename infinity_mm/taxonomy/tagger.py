"""A zero-shot image tagger: an open_clip model and a vocabulary.

    pictures --image tower--> \\
    tags ------text tower--> cosines --calibration, sigmoid, or softmax against a neutral text--> score per tag
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

from infinity_mm.errors import explain, need
from infinity_mm.record import Tag, canonical_json, digest
from infinity_mm.taxonomy.vocabulary import load_vocabulary

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_KEPT_SCORES = 64
"""Best scores that are journaled for each image; `top_k` and `min_score` choose among them."""


@dataclass(frozen=True, kw_only=True)
class TaggerConfig:
    """Which model tags, with which words."""

    model: str = "nano-clip"
    """`nano-clip`, the path of a folder made by train/clip.py, or what open_clip knows: `name/pretrained` such as
    `ViT-B-32/laion2b_s34b_b79k` (what follows the first slash may be the path of a file), `hf-hub:owner/name`,
    `local-dir:/path`. `none` gives no tags: every image gets types that suit any image."""
    vocabulary: str = "windtunnel"
    """`windtunnel`, `general`, or the path of a text file with one tag per line."""
    prompt: str = "{tag}"
    """What a tag is wrapped in; `a photo of {tag}` suits models trained on captions of photos."""
    top_k: int = 12
    """Most tags of one image."""
    min_score: float = 0.5
    """Least score of a tag."""
    batch_images: int = 32

    def __post_init__(self) -> None:
        if "{tag}" not in self.prompt:
            raise explain(
                what=f"the prompt `{self.prompt}` has no place for the tag",
                where="tagger.prompt (configuration)",
                fix="write {tag} where the tag goes, for example `a photo of {tag}`",
            )
        if not 1 <= self.top_k <= _KEPT_SCORES or not 0 <= self.min_score < 1 or self.batch_images < 1:
            raise explain(
                what=f"top_k={self.top_k}, min_score={self.min_score}, batch_images={self.batch_images}",
                where="tagger (configuration)",
                fix=f"top_k is 1 to {_KEPT_SCORES}, min_score at least 0 and below 1, batch_images at least 1",
            )


@runtime_checkable
class Tagger(Protocol):
    """Scores pictures."""

    @property
    def fingerprint(self) -> str:
        """Weights, preprocessing, vocabulary and prompt: all that decides the scores."""
        ...

    def scores(self, pictures: Sequence[Image]) -> list[dict[str, float]]:
        """Tag -> score from 0 to 1 for each picture, best first, at most 64 of them."""
        ...


@final
class ClipTagger:
    """Any open_clip model, nano-clip included."""

    def __init__(self, config: TaggerConfig) -> None:
        vocabulary = load_vocabulary(config.vocabulary)
        texts = [config.prompt.format(tag=tag) for tag in vocabulary]
        loaded = _load_nano(config.model, vocabulary, texts) or _load_open_clip(config.model, texts)
        self._vocabulary, self._loaded = vocabulary, loaded
        self.fingerprint = digest(
            "clip-tagger", loaded.fingerprint, canonical_json(list(vocabulary)), config.prompt
        )
        """See `Tagger`."""

    def scores(self, pictures: Sequence[Image]) -> list[dict[str, float]]:
        """One forward pass for all pictures."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self._loaded.preprocess(picture) for picture in pictures])
            image = self._loaded.model.encode_image(pixels, normalize=True)
            rows = self._loaded.to_scores(image).tolist()
        found = []
        for row in rows:
            best = sorted(zip(self._vocabulary, row), key=lambda pair: (-pair[1], pair[0]))[:_KEPT_SCORES]
            found.append({tag: round(score, 4) for tag, score in best})
        return found


@final
class NoTagger:
    """Scores nothing: for a first look without another model."""

    fingerprint = digest("no-tagger")

    def scores(self, pictures: Sequence[Image]) -> list[dict[str, float]]:
        """No tag for any picture."""
        return [{} for _ in pictures]


def choose_tags(scores: Mapping[str, float], config: TaggerConfig) -> tuple[Tag, ...]:
    """The tags that count, best first."""
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(
        Tag(name=tag, score=score) for tag, score in ranked[: config.top_k] if score >= config.min_score
    )


def weights_on_disk(model: str) -> str:
    """What can be said of a model without loading it: the hash of a local folder's files, else its name."""
    folder = None if model == "none" else _nano_folder(model)
    if folder is None:
        return model
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors"))
    return digest(
        *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.name != "metrics.json")
    )


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    model: Any
    preprocess: Callable[[Image], torch.Tensor]
    to_scores: Callable[[torch.Tensor], torch.Tensor]
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
        to_scores=lambda image: torch.sigmoid(slope * (image @ text.T) + offset),
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

    def to_scores(image: torch.Tensor) -> torch.Tensor:
        cosines = image @ text.T
        if bias is not None:  # trained with a sigmoid per pair: its own probability
            return torch.sigmoid(scale * cosines[:, :-1] + bias)
        # A softmax over all tags would make them rivals; an image has many. So each against a text that says nothing.
        return torch.sigmoid(scale * (cosines[:, :-1] - cosines[:, -1:]))

    return _Loaded(
        model=network,
        preprocess=preprocess,
        to_scores=to_scores,
        fingerprint=digest(model, open_clip.__version__, _state_hash(network)),
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


def _state_hash(network: Any) -> str:
    """Names can be pointed at other weights; the weights themselves cannot."""
    hasher = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.contiguous().cpu().numpy().tobytes())
    return hasher.hexdigest()
