"""The words everything else speaks: sample, image reference, turn, score record, labels, outcome, fate.

A `Sample` is frozen and goes the whole way; stages return copies (`dataclasses.replace`). Images are referenced
by content hash, never copied from stage to stage. In a sample `None` means "not written yet" and nothing else:
a failure is an outcome with a reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode  # made once: `json.dumps` with arguments makes one for every call
SCHEMA_VERSION = 1
"""Version of the rows written to shards; a reader refuses another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """One image, by content."""

    sha256: str
    """Hash of the encoded bytes, 64 hex digits."""
    uri: str
    """Where the bytes can be read again: an absolute path, a URL, or a path inside the run directory."""
    width: int
    """Pixels, of the upright image."""
    height: int
    """Pixels, of the upright image."""
    source: str = "unknown"
    """Name of the data set or folder it came from."""
    licence: str = "unknown"
    """SPDX name or the source's own words."""
    page: int | None = None
    """Page number in a document, from 0."""
    phash: str | None = None
    """64-bit perceptual hash, 16 hex digits."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a turn."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of `Sample.images[index]` in a turn."""

    index: int


@dataclass(frozen=True, slots=True)
class Region:
    """A box (x0, y0, x1, y1) or a point (x, y) on one image, normalised to the upright original, 0 to 1."""

    index: int
    coords: tuple[float, ...]


Part = Text | ImageSlot | Region
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, Text))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """One image tag with the score it was given."""

    name: str
    score: float
    calibrated: bool = False
    """Whether the score is a probability fitted to known images, or only ranks the tags of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One measured property of a question-answer pair, by name: `loss`, `blind`."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a judge said of one question-answer pair; the decision is a separate function of it and a policy."""

    overall: int | None
    """1 to 10 as the judge wrote it; None if its reply could not be read."""
    expected: float | None = None
    """Mean over the judge's probabilities of 1 to 10, where the engine gives them."""
    uncertainty: float | None = None
    """Entropy of those probabilities, in nats."""
    flags: tuple[str, ...] = ()
    """Named faults."""
    reason: str = ""
    """Why, in the judge's words, where it was asked for them."""

    @property
    def value(self) -> float | None:
        """The figure a policy compares: the expected score where known, else the written one."""
        return self.expected if self.expected is not None else self.overall


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """Provenance of one model output."""

    stage: str
    model: str
    """Engine fingerprint: model, revision, engine version, dtype."""
    prompt: str
    """`set/name@hash` of the prompt."""
    key: str
    """Journal key of the call."""
    temperature: float
    seed: int
    simulated: bool = False
    """True where no model was called: what it is part of can be looked at, and never published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image (or several) and what has been made of it so far."""

    id: str
    images: tuple[ImageRef, ...]
    parents: tuple[str, ...] = ()
    """Ids this sample was made from."""
    turns: tuple[Turn, ...] = ()
    """The conversation, once it is one."""
    tags: tuple[Tag, ...] | None = None
    instruction_type: str | None = None
    examples: tuple[str, ...] | None = None
    """Example questions of the same type, shown when asking."""
    question: str | None = None
    style: str | None = None
    """Answer style: short, brief, detailed or choice."""
    answer: str | None = None
    score: Score | None = None
    previous: tuple[tuple[str, Score | None], ...] = ()
    """Earlier answers with their scores, oldest first (a rewrite keeps what it replaced)."""
    labels: tuple[Label, ...] = ()
    """What filters measured of question and answer, sorted by name; what follows is the policy's business."""
    decision: str | None = None
    """keep, rewrite or drop, by policy."""
    calls: tuple[Call, ...] = ()

    def label(self, name: str) -> float | None:
        """The value of a label, None if it was not measured."""
        return next((label.value for label in self.labels if label.name == name), None)

    def with_label(self, name: str, value: float) -> Sample:
        """A copy with this label, in place of an older one of the name."""
        others = (label for label in self.labels if label.name != name)
        labels = sorted([*others, Label(name=name, value=value)], key=lambda label: label.name)
        return dataclasses.replace(self, labels=tuple(labels))

    @property
    def is_simulated(self) -> bool:
        """Whether any word or figure in it was made up by a simulated run."""
        return any(call.simulated for call in self.calls)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, exact round trip."""
        return canonical_json(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        """What its JSON holds, as dictionaries and lists."""
        return _plain(self)

    @classmethod
    def from_json(cls, text: str) -> Sample:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(
            id=data["id"],
            images=tuple(ImageRef(**image) for image in data["images"]),
            parents=tuple(data["parents"]),
            turns=tuple(Turn(t["role"], tuple(_part(p) for p in t["content"])) for t in data["turns"]),
            tags=None if data["tags"] is None else tuple(Tag(**tag) for tag in data["tags"]),
            instruction_type=data["instruction_type"],
            examples=None if data["examples"] is None else tuple(data["examples"]),
            question=data["question"],
            style=data["style"],
            answer=data["answer"],
            score=_score(data["score"]),
            previous=tuple((answer, _score(score)) for answer, score in data["previous"]),
            labels=tuple(Label(**label) for label in data["labels"]),
            decision=data["decision"],
            calls=tuple(Call(**call) for call in data["calls"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Emitted:
    """A sample goes on: the input itself (same id) or a child that names its parents."""

    sample: Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A sample ends here, for a reason."""

    id: str
    stage: str
    reason: str
    sample: Sample | None = None
    """The dropped record, so that a person can look at it and a policy can change its mind."""
    detail: str = ""
    """What exactly was wrong, where the reason alone does not say it (which earlier question is repeated)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """A sample became part of another one."""

    id: str
    stage: str
    into: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """Something raised: set aside with the error, to be looked at or replayed."""

    id: str
    stage: str
    reason: str
    error: str
    sample: Sample | None = None


Outcome = Emitted | Dropped | Merged | Quarantined
FateName = Literal["continued", "expanded", "dropped", "merged", "quarantined"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """What became of one input of one stage: a line of the ledger."""

    id: str
    stage: str
    fate: FateName
    reason: str = ""
    """Why it was dropped or quarantined."""
    into: tuple[str, ...] = ()
    """Children it expanded into, or the sample it was merged into."""


class ConservationError(AssertionError):
    """A stage lost, doubled or invented a sample: a bug of ours, the run stops."""


def settle(stage: str, input_ids: Sequence[str], outcomes: Iterable[Outcome]) -> list[Fate]:
    """Check the conservation law for one stage and return the fate of every input, in input order.

    Every input id has exactly one fate; every emitted sample is an input or names inputs as its parents;
    a merge target is an emitted sample. Raises `ConservationError`.
    """
    known = set(input_ids)
    if len(known) != len(input_ids):
        raise ConservationError(f"{stage}: an id came in twice: {sorted(_doubles(input_ids))[:3]}")
    fates: dict[str, Fate] = {}
    emitted: set[str] = set()
    children: dict[str, list[str]] = {}
    merges: list[Merged] = []

    def give(fate: Fate) -> None:
        if fate.id not in known:
            raise ConservationError(f"{stage}: a fate for {fate.id}, which was not an input")
        if fate.id in fates:
            raise ConservationError(
                f"{stage}: {fate.id} has two fates, {fates[fate.id].fate} and {fate.fate}"
            )
        fates[fate.id] = fate

    for outcome in outcomes:
        match outcome:
            case Emitted(sample=sample):
                if sample.id in emitted:
                    raise ConservationError(f"{stage}: {sample.id} was emitted twice")
                emitted.add(sample.id)
                if sample.id in known:
                    give(Fate(id=sample.id, stage=stage, fate="continued"))
                elif not sample.parents or not set(sample.parents) <= known:
                    raise ConservationError(f"{stage}: {sample.id} names no input as its parent")
                else:
                    for parent in sample.parents:
                        children.setdefault(parent, []).append(sample.id)
            case Dropped():
                give(Fate(id=outcome.id, stage=stage, fate="dropped", reason=outcome.reason))
            case Quarantined():
                give(Fate(id=outcome.id, stage=stage, fate="quarantined", reason=outcome.reason))
            case Merged():
                merges.append(outcome)
                give(Fate(id=outcome.id, stage=stage, fate="merged", into=(outcome.into,)))
    for merge in merges:
        if merge.into not in emitted:
            raise ConservationError(
                f"{stage}: {merge.id} was merged into {merge.into}, which was not emitted"
            )
    for parent, ids in children.items():
        if parent not in fates:
            fates[parent] = Fate(id=parent, stage=stage, fate="expanded", into=tuple(ids))
        elif fates[parent].fate != "merged":
            raise ConservationError(f"{stage}: {parent} was both {fates[parent].fate} and expanded")
    missing = known - set(fates)
    if missing:
        raise ConservationError(
            f"{stage}: no fate for {len(missing)} of {len(known)}, first {sorted(missing)[0]}"
        )
    return [fates[id_] for id_ in input_ids]


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, UTF-8 kept."""
    return _encode(value)


def digest(*parts: str) -> str:
    """SHA-256 over parts, 64 hex digits; no two lists of parts collide by concatenation."""
    return hashlib.sha256(canonical_json(list(parts)).encode("utf-8", "surrogatepass")).hexdigest()


def seed_for(seed: int, stage: str, sample_id: str, draw: int = 0) -> int:
    """A 63-bit seed that depends on the sample, not on the worker or the order."""
    return int(digest(str(seed), stage, sample_id, str(draw))[:16], 16) >> 1


def rng_for(seed: int, stage: str, sample_id: str) -> random.Random:
    """The same draws on every worker, in every order, after every restart."""
    return random.Random(seed_for(seed, stage, sample_id))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    cls = type(value)
    plain = {name: _plain(getattr(value, name)) for name in _field_names(cls)}
    if cls in _PART_NAMES:
        plain["type"] = _PART_NAMES[cls]
    return plain


@cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


_PART_NAMES = {Text: "text", ImageSlot: "image", Region: "region"}


def _part(data: Mapping[str, Any]) -> Part:
    match data["type"]:
        case "text":
            return Text(data["text"])
        case "image":
            return ImageSlot(data["index"])
        case "region":
            return Region(data["index"], tuple(data["coords"]))
        case other:
            raise ValueError(f"unknown part type {other!r}")


def _score(data: Mapping[str, Any] | None) -> Score | None:
    return None if data is None else Score(**{**data, "flags": tuple(data["flags"])})


def _doubles(ids: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    return {id_ for id_ in ids if id_ in seen or seen.add(id_)}
