"""What stands in the gallery: rows, pictures and sections, each row and picture once, within a budget.

Scan.sections --fill--> rows, sections --gallery--> + file names, thumbnails, what became of each pair
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infinity_mm.record import ImageRef, Sample
from infinity_mm.report.lookup import files_of_images, image_id, item_keys, ledger_lines, samples_by_id
from infinity_mm.report.page import Gallery
from infinity_mm.report.scan import FATES, ReportConfig, Scan, page_row, plain
from infinity_mm.report.text import clip, json_block
from infinity_mm.report.thumbs import Thumbnail, Thumbnails
from infinity_mm.runtime.run import Run

_ROW_BYTES = 6_000_000
"""Of all rows together, as they stand on the page."""
_SHARES = {"random": 0.3, "repeats": 0.1}
"""Share of the bytes that a section may take, besides what those before it left; others take `_SHARE`."""
_SHARE = 0.12


class Shelf:
    """Rows, images and sections of the gallery, each row and image once."""

    def __init__(self, run: Run, found: Scan, config: ReportConfig, thumbs: Thumbnails) -> None:
        self._run, self._scan, self._config, self._thumbs = run, found, config, thumbs
        self._rows: dict[tuple[str, str], int] = {}
        self.rows: list[dict[str, Any]] = []
        self.sections: list[dict[str, Any]] = []
        self._images: dict[str, int] = {}
        self._refs: list[tuple[ImageRef, str, list[Any]]] = []
        """(reference, id of the image's sample, tags)."""
        self._bytes = 0
        self._limit = 0.0
        self.rows_left_out = 0

    def fill(self) -> None:
        """Take the sections in the order of the tabs; what no longer fits is counted, not silently cut."""
        found, seed = self._scan.sections, self._config.seed
        self._section(
            "random",
            "Random pictures",
            lambda shown: (
                f"{shown:,} of {found.pictures.seen:,} pictures, drawn with seed {seed}, each with all that "
                "was made of it."
            ),
            [{"rows": picture["rows"], "note": _cut_note(picture)} for picture in found.pictures],
        )
        for name, pool, how in (("best", found.best, "highest"), ("worst", found.worst, "lowest")):
            self._section(
                name,
                name.capitalize(),
                lambda shown, pool=pool, how=how: (
                    f"The {shown:,} {how} scores of {pool.seen:,} judged pairs, kept or "
                    "not; equal scores in an order drawn with the seed."
                ),
                [{"rows": [row]} for row in pool],
            )
        for name, what in (
            ("rewritten", "pairs with a rewritten answer"),
            ("dropped", "samples dropped"),
            ("quarantined", "samples set aside because something failed"),
        ):
            pools = {key: pool for key, pool in found.by_reason.items() if key[0] == name}
            rows = _round_robin(
                [list(pool) for _, pool in sorted(pools.items())], 2 * self._config.per_section
            )
            seen, num = sum(pool.seen for pool in pools.values()), len(pools)
            self._section(
                name,
                name.capitalize(),
                lambda shown, seen=seen, what=what, num=num: (
                    f"{shown:,} of {seen:,} {what}, taken in turn from each of {num} stages and reasons."
                ),
                [{"rows": [row]} for row in rows],
            )
        repeats, seen_repeats = self._repeats()
        self._section(
            "repeats",
            "Near duplicates",
            lambda shown: (
                f"{shown:,} of {seen_repeats:,} samples that repeat another one (the same file, the same "
                "conversation about a near-duplicate picture, the same question), side by side."
            ),
            repeats,
        )
        if not self.sections:
            self.sections.append(
                {"name": "empty", "label": "Nothing", "about": "No samples.", "cards": [], "rows": 0}
            )

    def gallery(self) -> Gallery:
        """With file names, pictures and what became of each pair looked up."""
        went = where_it_went(self._run, self._scan, [row["id"] for row in self.rows])
        for row in self.rows:
            row["went"] = went.get(row["id"], "")
        names = files_of_images(self._run, {id_ for _, id_, _ in self._refs})
        thumbnails: dict[str, str] = {}
        images: list[dict[str, Any]] = []
        made = self._make_thumbnails()
        for number, (ref, id_, tags) in enumerate(self._refs):
            made_ = made[number]
            is_made = isinstance(made_, Thumbnail)
            if is_made:
                thumbnails[f"t{number}"] = made_.webp
            images.append(
                {
                    "sha": clip(ref.sha256, 64),
                    "width": ref.width,
                    "height": ref.height,
                    "source": clip(ref.source, 200),
                    "licence": clip(ref.licence, 200),
                    "files": [clip(f"{source} · {key}", 300) for source, key in names.get(id_, [])[:8]],
                    "tags": tags,
                    "thumb": f"t{number}" if is_made else None,
                    "why": "" if is_made else made_,
                    "tw": made_.width if is_made else None,
                    "th": made_.height if is_made else None,
                }
            )
        return Gallery(
            rows=self.rows,
            images=images,
            sections=self.sections,
            thumbnails=thumbnails,
            options={
                "type": sorted({row["type"] for row in self.rows} - {""}),
                "fate": [
                    fate for fate in (*FATES, "merged") if any(row["fate"] == fate for row in self.rows)
                ],
                "end": sorted({f"{row['stage']}: {row['reason']}" for row in self.rows if row["reason"]}),
                "script": sorted({row["script"] for row in self.rows}),
            },
        )

    def _make_thumbnails(self) -> dict[int, Thumbnail | str]:
        """Sections in turn, so that a budget that is spent costs none of them all its pictures."""
        ranks = [
            (rank, place)
            for section in self.sections
            for rank, card in enumerate(section["cards"])
            for place in card["images"]
            if place >= 0
        ]
        return {
            place: self._thumbs.make(self._refs[place][0])
            for place in dict.fromkeys(p for _, p in sorted(ranks))
        }

    def _section(
        self, name: str, label: str, about: Callable[[int], str], cards: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a section; a card is {"rows": page rows, "note"}, and shows one picture for each of its images."""
        self._limit += _ROW_BYTES * _SHARES.get(name, _SHARE)
        shown: list[dict[str, Any]] = []
        for card in cards:
            places = [place for row in card["rows"] if (place := self._add(row)) is not None]
            if places:
                pictures = list(dict.fromkeys(self.rows[place]["image"] for place in places))
                shown.append({"rows": places, "note": card.get("note", ""), "images": pictures})
        if shown:
            rows = sum(len(card["rows"]) for card in shown)
            self.sections.append(
                {"name": name, "label": label, "about": about(len(shown)), "cards": shown, "rows": rows}
            )

    def _add(self, row: dict[str, Any]) -> int | None:
        key = (row["id"], row["pass"])
        if key in self._rows:
            return self._rows[key]
        size = len(json_block(row).encode("utf-8", "surrogatepass"))
        if self._bytes + size > self._limit:
            self.rows_left_out += 1
            return None
        self._bytes += size
        raw, tags = row.pop("images"), row.pop("tags")
        row["image"] = self._image(raw[0], image_id(row["id"]), tags) if raw else -1
        self._rows[key] = len(self.rows)
        self.rows.append(row)
        return self._rows[key]

    def _image(self, raw: Mapping[str, Any], id_: str, tags: list[Any]) -> int:
        place = self._images.setdefault(raw["sha256"], len(self._refs))
        if place == len(self._refs):
            self._refs.append((ImageRef(**raw), id_, tags))
        elif tags and not self._refs[place][2]:
            self._refs[place][2].extend(tags)
        return place

    def _repeats(self) -> tuple[list[dict[str, Any]], int]:
        """Merged samples beside what they repeat, questions beside the one they repeat; and how many there are."""
        cards: list[dict[str, Any]] = []
        seen = 0
        for stage, pool in sorted(self._scan.sections.repeats.items()):
            seen += pool.seen
            chosen = list(pool)
            ids = {id_ for row in chosen for id_ in (row["id"], row["into"])}
            samples: dict[str, Sample] = {}
            # A merged sample was put out by the pass before; the one it repeats may have a new id since.
            for manifest in self._scan.passes:
                if chosen and manifest.pass_name in (chosen[0]["pass"], self._before(chosen[0]["pass"])):
                    samples |= samples_by_id(self._run, manifest, ids)
            keys = item_keys(self._run, ids)
            for row in chosen:
                both = (row["id"], {"stage": stage, "reason": "repeat"}), (row["into"], {})
                rows = [
                    self._conversation(samples[id_], why, keys.get(id_, ()), row["pass"])
                    for id_, why in both
                    if id_ in samples
                ]
                note = f"{stage}: {clip(row['id'], 100)} repeats {clip(row['into'], 100)}"
                cards.append({"rows": rows, "note": note})
        questions = self._scan.sections.by_reason.get(("dropped", "distinct", "duplicate_question"))
        for row in list(questions or ())[: self._config.per_section // 2]:
            first = row["detail"].removeprefix("repeats ")
            also = [other for other in self.rows if f"{other['id']}.".startswith(f"{first}.")][:1]
            cards.append({"rows": [row, *also], "note": f"distinct: {row['detail']}"})
        return cards, seen + (questions.seen if questions else 0)

    def _before(self, pass_name: str) -> str | None:
        return next(m.after for m in self._scan.passes if m.pass_name == pass_name)

    def _conversation(
        self, sample: Sample, why: Mapping[str, Any], key: Sequence[str], pass_name: str
    ) -> dict[str, Any]:
        why = {**why, **dict(zip(("source", "key"), key))}
        fate = "merged" if why.get("reason") else "kept"
        chars = self._config.text_chars
        return page_row(plain(sample.to_json()), fate, why, f"{pass_name} (repeats)", text_chars=chars)


def where_it_went(run: Run, found: Scan, ids: Sequence[str]) -> dict[str, str]:
    """Id of a pair -> the conversation it went into and what became of that."""
    told: dict[str, str] = {}
    into: dict[str, str] = {}
    for manifest in found.passes:
        if not into:
            lines = ledger_lines(run, manifest, ids=set(ids)) if "journeys" in manifest.pass_name else ()
            into = {line.id: line.into[0] for line in lines if line.fate == "merged"}
            told = {id_: f"turn of conversation {target}" for id_, target in into.items()}
            continue
        ends = {line.id: line for line in ledger_lines(run, manifest, ids=set(into.values()))}
        for id_, target in into.items():
            line = ends.get(target)
            if line is not None and line.fate != "continued":
                told[id_] += f"; {line.fate} in {line.stage}" + (f" into {line.into[0]}" if line.into else "")
                told[id_] += f" ({line.reason})" if line.reason else ""
            elif line is not None and manifest.pass_name == "publish":
                told[id_] += "; published"
    return {id_: clip(text, 400) for id_, text in told.items()}


def _round_robin(pools: Sequence[list[dict[str, Any]]], most: int) -> list[dict[str, Any]]:
    """One of each in turn, so that a rare reason is seen beside a common one."""
    longest = max((len(pool) for pool in pools), default=0)
    mixed = [pool[i] for i in range(longest) for pool in pools if i < len(pool)]
    return mixed[:most]


def _cut_note(picture: Mapping[str, Any]) -> str:
    shown, of = len(picture["rows"]), picture["of"]
    return "" if shown == of else f"{shown} of {of:,} samples of this picture are shown"
