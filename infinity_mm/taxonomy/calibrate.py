"""`infinity-mm calibrate-tags`: what the scores of a tagger mean, learned from images whose true tags are known.

labels.jsonl --decode, tagger--> logits of every tag --fit--> calibration.json, for `tagger.calibration`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infinity_mm.errors import explain
from infinity_mm.taxonomy.calibration import Method, fit
from infinity_mm.taxonomy.json_lines import read_rows, strings
from infinity_mm.taxonomy.tagger import LogitTagger, TaggerConfig, open_tagger
from infinity_mm.taxonomy.vlm_tagger import loose
from infinity_mm.vision.images import BadImage, decode_image

_FORM = '{"image": "photos/1.jpg", "tags": ["dog"]}, and "absent": ["cat"] where not all tags were looked for'


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One image that a person looked at."""

    image: Path
    tags: frozenset[str]
    """True ones."""
    absent: frozenset[str] | None
    """Those that were looked for and are not there; None: whatever is not in `tags` is not there."""


def calibrate(
    labels: Path, config: TaggerConfig, *, method: Method = "platt", min_labels: int = 10, out: Path
) -> dict[str, Any]:
    """Fit and write a calibration; returns figures for people."""
    tagger = open_tagger(config) if config.model != "vlm" else None
    if not isinstance(tagger, LogitTagger) or config.calibration is not None:
        raise explain(
            what=f"the tagger `{config.model}` gives no logits, or has a calibration already",
            where="infinity-mm calibrate-tags",
            fix="name a model of open_clip or ram:/path, without tagger.calibration",
        )
    places = {loose(tag): place for place, tag in enumerate(tagger.vocabulary)}
    logits, right, known = [], [], []
    skipped: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for labelled in read_labels(labels):
        try:
            picture = decode_image(labelled.image.read_bytes())
        except (BadImage, OSError) as bad:
            skipped[bad.reason if isinstance(bad, BadImage) else "unreadable_file"] += 1
            continue
        logits.append(tagger.logits([picture])[0].numpy())
        is_true, is_known = _row(labelled, places, unknown)
        right.append(is_true)
        known.append(is_known)
    if len(logits) < 5:
        raise explain(
            what=f"{len(logits)} images could be read, {dict(skipped)} could not",
            where=str(labels),
            fix="label at least 5 images, better some hundreds; paths are relative to the file",
        )
    calibration = fit(
        tagger.vocabulary,
        np.stack(logits),
        np.stack(right),
        np.stack(known),
        tagger=tagger.fingerprint,
        method=method,
        min_labels=min_labels,
    )
    calibration.save(out)
    return {
        "out": str(out),
        "images": calibration.num_images,
        "skipped": dict(skipped),
        "tags_with_a_curve": len(calibration.curves) - 1,
        "tags_not_in_vocabulary": dict(unknown.most_common(10)),
        **calibration.measured,
    }


def read_labels(file: Path) -> Iterator[Labelled]:
    """The rows of a JSONL file; a faulty one is an error with its line."""
    for where, row in read_rows(file, form=_FORM):
        absent = row.get("absent")
        yield Labelled(
            image=file.parent / str(row.get("image")),
            tags=frozenset(map(loose, strings(row, "tags", where=where, form=_FORM))),
            absent=None
            if absent is None
            else frozenset(map(loose, strings(row, "absent", where=where, form=_FORM))),
        )


def _row(
    labelled: Labelled, places: Mapping[str, int], unknown: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Which tags of the vocabulary are true of the image, and of which that is known."""
    right = np.zeros(len(places), dtype=bool)
    known = np.full(len(places), labelled.absent is None)
    for tag in labelled.tags | (labelled.absent or frozenset()):
        place = places.get(tag)
        if place is None:
            unknown[tag] += 1
        else:
            known[place], right[place] = True, tag in labelled.tags
    return right, known
