"""Image taggers: their configuration, what they have in common, and which of their tags count.

pictures --logits of every tag--> calibration, or their sigmoid --> scores --top_k, min_score--> tags of an image
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, final, runtime_checkable

from infinity_mm.engines.spec import EngineConfig
from infinity_mm.errors import explain
from infinity_mm.record import Sample, Tag, digest
from infinity_mm.taxonomy.calibration import Calibration

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
    `local-dir:/path`. `ram:/path` of its weights is RAM++. `vlm` asks `engine`. `none` gives no tags besides those that
    came with the images; an image without any gets types that suit any image."""
    vocabulary: str = "windtunnel"
    """`windtunnel`, `general`, or the path of a text file with one tag per line."""
    prompt: str = "{tag}"
    """What a tag is wrapped in; `a photo of {tag}` suits models trained on captions of photos."""
    top_k: int = 12
    """Most tags of one image."""
    min_score: float = 0.5
    """Least score of a tag."""
    batch_images: int = 32
    calibration: str | None = None
    """File that `infinity-mm calibrate-tags` made for this model, vocabulary and prompt: scores are probabilities."""
    source_tags: Literal["keep", "merge", "ignore"] = "keep"
    """Tags that came with an image (Infinity-MM's are RAM++'s): `keep` takes them as they are and tags only images
    without, `merge` adds the tagger's, the higher score counting where both say it, `ignore` has only the tagger's."""
    engine: EngineConfig | None = None
    """vlm: the model that is asked."""
    list_vocabulary: bool = True
    """vlm: whether the vocabulary is in the prompt, before the image, where a prefix cache pays for it once; without
    it the model names what it sees, and words of the vocabulary count."""
    max_new_tokens: int = 512
    """vlm: room for the tags; a reply that needs more keeps those that came whole."""

    def __post_init__(self) -> None:
        if (self.model == "vlm") != (self.engine is not None):
            raise explain(
                what="a VLM tags if, and only if, tagger.model is `vlm`, and it is tagger.engine that is asked",
                where="tagger (configuration)",
                fix="give both or neither; tagger.engine takes the keys of engines.teacher",
            )
        if "{tag}" not in self.prompt:
            raise explain(
                what=f"the prompt `{self.prompt}` has no place for the tag",
                where="tagger.prompt (configuration)",
                fix="write {tag} where the tag goes, for example `a photo of {tag}`",
            )
        if self.calibration is not None and self.model in ("vlm", "none"):
            raise explain(
                what=f"a calibration is for models that give every tag a logit, not for `{self.model}`",
                where="tagger.calibration (configuration)",
                fix="leave it out",
            )
        if not 1 <= self.top_k <= _KEPT_SCORES or not 0 <= self.min_score < 1 or self.batch_images < 1:
            raise explain(
                what=f"top_k={self.top_k}, min_score={self.min_score}, batch_images={self.batch_images}",
                where="tagger (configuration)",
                fix=f"top_k is 1 to {_KEPT_SCORES}, min_score at least 0 and below 1, batch_images at least 1",
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are probabilities that were fitted to known images."""
        brings_its_own = self.model == "nano-clip" or os.path.isabs(self.model)
        return brings_its_own or self.calibration is not None


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


class LogitTagger:
    """What taggers have in common that give every tag of a vocabulary a logit."""

    def __init__(self, config: TaggerConfig, vocabulary: Sequence[str], fingerprint: str) -> None:
        self.vocabulary = tuple(vocabulary)
        self.fingerprint = fingerprint
        """See `Tagger`."""
        self._calibration: Calibration | None = None
        if config.calibration is not None:
            self._calibration = load_calibration(config.calibration, fingerprint)
            self.fingerprint = digest(fingerprint, self._calibration.fingerprint)

    def logits(self, pictures: Sequence[Image]) -> torch.Tensor:
        """(pictures, vocabulary)."""
        raise NotImplementedError

    def scores(self, pictures: Sequence[Image]) -> list[dict[str, float]]:
        """See `Tagger`."""
        logits = self.logits(pictures)
        if self._calibration is None:
            rows = logits.sigmoid().tolist()
        else:
            rows = self._calibration.probabilities(self.vocabulary, logits.numpy()).tolist()
        return [best_scores(dict(zip(self.vocabulary, row))) for row in rows]


@final
class NoTagger:
    """Scores nothing: for a first look without another model."""

    fingerprint = digest("no-tagger")

    def scores(self, pictures: Sequence[Image]) -> list[dict[str, float]]:
        """No tag for any picture."""
        return [{} for _ in pictures]


def open_tagger(config: TaggerConfig) -> Tagger:
    """The tagger of pictures that a configuration names; `vlm` is another matter, see `vlm_tagger.py`."""
    from infinity_mm.taxonomy.clip_tagger import ClipTagger
    from infinity_mm.taxonomy.ram_tagger import PREFIX, RamTagger

    if config.model == "none":
        return NoTagger()
    return RamTagger(config) if config.model.startswith(PREFIX) else ClipTagger(config)


def load_calibration(path: str, fingerprint: str) -> Calibration:
    """Read a calibration and refuse it for another tagger than the one it was fitted for."""
    calibration = Calibration.load(path)
    if calibration.tagger != fingerprint:
        raise explain(
            what="the calibration was fitted for another tagger, vocabulary or prompt",
            where=f"tagger.calibration: {path}",
            fix="make one with `infinity-mm calibrate-tags` and the same tagger settings",
        )
    return calibration


def best_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """What is journaled of an image: its best tags, rounded."""
    best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:_KEPT_SCORES]
    return {tag: round(score, 4) for tag, score in best}


def choose_tags(scores: Mapping[str, float], config: TaggerConfig) -> tuple[Tag, ...]:
    """The tags that count, best first."""
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(
        Tag(name=tag, score=score, calibrated=config.is_calibrated)
        for tag, score in ranked[: config.top_k]
        if score >= config.min_score
    )


def needs_tags(sample: Sample, config: TaggerConfig) -> bool:
    """Whether the tagger is to look at it; see `source_tags`."""
    return sample.tags is None or config.source_tags != "keep"


def with_tags(sample: Sample, found: tuple[Tag, ...], config: TaggerConfig) -> Sample:
    """The sample with what the tagger found, and with its own tags where they are merged."""
    if config.source_tags == "merge":
        best = {tag.name: tag for tag in sample.tags or ()}
        best |= {tag.name: tag for tag in found if tag.name not in best or tag.score > best[tag.name].score}
        found = tuple(sorted(best.values(), key=lambda tag: (-tag.score, tag.name)))
    return replace(sample, tags=found)
