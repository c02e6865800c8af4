"""Images in WebDataset tars, read where they lie: plain ones, and Infinity-MM's own layout.

tars --heads of members--> one item per sample, with the places of its members --two reads--> Content

Reading one sample touches its own bytes only, and a run refers to them where they lie: nothing is unpacked or copied.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast, final

from infinity_mm.formats.infinity_mm import Group, Span, entry_of, groups
from infinity_mm.record import Tag, Turn
from infinity_mm.sources.base import Content, FromTheWorld, Picture, SourceItem
from infinity_mm.sources.conversations import caption_turns, turns_of
from infinity_mm.sources.folder import IMAGE_SUFFIXES
from infinity_mm.sources.json_rows import BadRow, check_unicode
from infinity_mm.sources.listing import Files
from infinity_mm.storage.files import open_fs, read_span, span_url

_HEAD_BYTES = 1 << 16
_PLACE = re.compile(r"(\w+)=(\d+)-(\d+)")


class _Tars(FromTheWorld, ABC):
    """What both layouts share: how a sample's places travel from the listing to the reading."""

    name: str
    path: str

    def items(self) -> Iterator[SourceItem]:
        """Samples in order of the tars' names and of their places in the tar."""
        for name, url in self._files.list():
            keys: Counter[str] = Counter()
            filesystem, path = open_fs(url)
            # Of a tar behind a URL a little is fetched around each head, not megabytes.
            with filesystem.open(path, "rb", block_size=_HEAD_BYTES) as file:
                for group in groups(cast(BinaryIO, file)):
                    yield self._item(name, group, keys)

    def _item(self, name: str, group: Group, keys: Counter[str]) -> SourceItem:
        # The name in the tar may be no UTF-8, and nothing keeps a tar from using one twice.
        key = f"{name}/{group.key}".encode("utf-8", "backslashreplace").decode()
        keys[key] += 1
        key = key if keys[key] == 1 else f"{key}#{keys[key]}"
        try:
            places = self._places(group)
        except BadRow as bad:
            return SourceItem(key=key, source=self.name, problem=bad.reason, detail=bad.detail)
        shown = "&".join(f"{what}={s.offset}-{s.offset + s.size}" for what, s in places.items())
        return SourceItem(key=key, source=self.name, uri=f"{name}#{shown}")

    @abstractmethod
    def _places(self, group: Group) -> Mapping[str, Span]:
        """What of a sample is read; raises `BadRow`."""

    def _opened(self, item: SourceItem) -> tuple[Picture, dict[str, bytes]]:
        """The image, and the other members that `_places` named."""
        assert item.uri is not None
        name, _, shown = item.uri.rpartition("#")
        url = self._files.url(name)
        spans = {what: (int(start), int(stop)) for what, start, stop in _PLACE.findall(shown)}
        image = spans.pop("image")
        picture = Picture(data=read_span(url, *image), uri=span_url(url, *image))
        return picture, {what: read_span(url, *span) for what, span in spans.items()}

    @property
    def _files(self) -> Files:
        return Files(self.path, ".tar")


@final
@dataclass(frozen=True, kw_only=True)
class WebDatasetSource(_Tars):
    """Tars with an image, and optionally a `json` (`conversations` or `caption`, `license`) or `txt`, per sample."""

    name: str
    path: str
    """A tar, a folder with tars at any depth, or a pattern with `*`."""
    licence: str = "unknown"
    use_conversations: bool = True
    """False takes only the images."""

    def read(self, item: SourceItem) -> Content:
        """Image, conversation or caption, licence."""
        picture, rest = self._opened(item)
        entry = entry_of(rest["json"], item.key) if "json" in rest else {}
        licence = entry.get("license")
        return Content(
            pictures=(picture,),
            licence=licence if isinstance(licence, str) and licence else self.licence,
            turns=self._turns(entry, rest.get("txt")) if self.use_conversations else (),
        )

    def _places(self, group: Group) -> Mapping[str, Span]:
        if group.problem is not None:
            raise group.problem
        images = [
            suffix for suffix in group.spans if PurePosixPath(f"x.{suffix}").suffix.lower() in IMAGE_SUFFIXES
        ]
        if len(images) != 1:
            reason = "several_images" if images else "no_image_member"
            raise BadRow(reason, ", ".join(sorted(group.spans))[:200])
        return {"image": group.spans[images[0]]} | {
            what: group.spans[what] for what in ("json", "txt") if what in group.spans
        }

    def _turns(self, entry: Mapping[str, Any], text: bytes | None) -> tuple[Turn, ...]:
        if "conversations" in entry:
            return turns_of(entry["conversations"])
        caption = entry.get("caption")
        if isinstance(caption, str):
            return caption_turns([caption])
        if text is None:
            return ()
        try:
            return caption_turns([text.decode("utf-8-sig")])
        except UnicodeDecodeError as error:
            raise BadRow("invalid_unicode", f"{error.reason} in the caption") from error


@final
@dataclass(frozen=True, kw_only=True)
class InfinityMMSource(_Tars):
    """Infinity-MM as published: `stage1/*/*` to `stage4/*/*/*`, a `json` and a `jpg` member per sample."""

    name: str
    path: str
    """A tar, a folder with tars at any depth such as `stage2`, or a pattern with `*`."""
    licence: str = "unknown"
    use_conversations: bool = True
    """False takes only the images and their tags."""

    def read(self, item: SourceItem) -> Content:
        """Image, conversation, RAM++ tags; the data set that the record names is its origin."""
        picture, rest = self._opened(item)
        entry = entry_of(rest["json"], item.key)
        check_unicode(entry)
        origin, licence = entry.get("source"), entry.get("license")
        return Content(
            pictures=(picture,),
            licence=licence if isinstance(licence, str) and licence else self.licence,
            origin=origin if isinstance(origin, str) and origin else None,
            turns=turns_of(entry.get("conversations")) if self.use_conversations else (),
            tags=released_tags(entry),
        )

    def _places(self, group: Group) -> Mapping[str, Span]:
        spans = group.checked().spans
        if not spans["jpg"].size:
            raise BadRow("text_only", "its jpg member has no bytes")
        return {"image": spans["jpg"], "json": spans["json"]}


def released_tags(entry: Mapping[str, Any]) -> tuple[Tag, ...] | None:
    """The RAM++ tags of a record, best first; None where it has none, or tags without a score each.

    The released scores are logits (6.5, 1.9; tags were kept from 1.4 on): a tag's score is their sigmoid.
    """
    names, scores = entry.get("ram++_tags"), entry.get("ram++_tags_score")
    if not isinstance(names, list) or not isinstance(scores, list) or len(names) != len(scores):
        return None
    found: dict[str, float] = {}
    for name, score in zip(names, scores):
        if not isinstance(name, str) or not name.strip():
            return None
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            return None
        probability = round(1 / (1 + math.exp(-max(-60.0, min(60.0, score)))), 4)
        found[name.strip()] = max(probability, found.get(name.strip(), 0.0))
    return tuple(Tag(name=name, score=found[name]) for name in sorted(found, key=lambda n: (-found[n], n)))
