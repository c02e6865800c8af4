"""The manifest: a shard exists when, and only when, its entry does.

    data objects under unique names --then--> manifest/<pass>/<generation>/<unit>.json     first of two wins
    all units of a pass             --then--> manifest/<pass>/pass.json                    the pass is committed

A generation is one fingerprint of a pass with one list of units. Objects that no entry names are garbage: left by
a worker that was killed or came second, harmless, and removed when the pass is committed.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from infinity_mm.errors import explain
from infinity_mm.record import SCHEMA_VERSION, canonical_json, digest
from infinity_mm.storage import files

_PLACES = {
    "shard": ("shards", "parquet"),
    "ledger": ("ledger", "parquet"),
    "dropped": ("dropped", "jsonl"),
    "quarantined": ("quarantine", "jsonl"),
    "metrics": ("metrics", "json"),
}
"""Folder of the run directory and file ending by kind of object; anything else is an extra file of the unit."""
_FILES = "files"
_FOLDERS = (*(folder for folder, _ in _PLACES.values()), _FILES)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One committed file."""

    path: str
    """Relative to the run directory."""
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One committed unit of a pass."""

    pass_name: str
    unit: str
    generation: str
    objects: Mapping[str, StoredObject]
    """By kind (shard, ledger, dropped, quarantined, metrics) or `file/<name>`."""
    counts: Mapping[str, int]
    """What came in, what became of it; see `runtime.ledger`."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Self:
        """The inverse of `to_json`; refuses another schema version."""
        plain = _plain(data, where)
        objects = {kind: StoredObject(**stored) for kind, stored in plain.pop("objects").items()}
        return cls(objects=objects, **plain)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One committed pass."""

    pass_name: str
    fingerprint: str
    """Of the pass and of all passes before it."""
    generation: str
    """Where its entries are."""
    units: tuple[str, ...]
    """Ids, in order."""
    totals: Mapping[str, int]
    """The counts of all units, added up."""
    metrics: Mapping[str, float]
    """The metrics of all units, added up."""
    content: str
    """Hash over the shards, ledgers and files of all units: what the next pass builds on."""
    after: str | None
    """The pass before it, if any."""
    seconds: float
    """Wall time of the call that committed it."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Self:
        """The inverse of `to_json`; refuses another schema version."""
        plain = _plain(data, where)
        return cls(units=tuple(plain.pop("units")), **plain)


def check_name(name: str, *, what: str) -> None:
    """Refuse a name that could leave its folder or clash with another one."""
    if not _NAME.fullmatch(name):
        raise explain(
            what=f"{what} `{name}` cannot be part of a file name",
            where="runtime",
            fix="use letters, digits, `_`, `-` and `.`, starting with a letter or digit",
        )


def commit_unit(
    run_dir: str,
    *,
    pass_name: str,
    unit: str,
    generation: str,
    objects: Mapping[str, bytes],
    counts: Mapping[str, int],
) -> Entry:
    """Write the objects, then the entry that makes them real. If another worker was first, its entry is returned."""
    suffix = secrets.token_hex(4)
    stored = {}
    for kind, data in objects.items():
        path = _object_path(kind, pass_name, unit, suffix)
        files.write(files.join(run_dir, path), data)
        stored[kind] = StoredObject(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    entry = Entry(pass_name=pass_name, unit=unit, generation=generation, objects=stored, counts=counts)
    if files.create(_entry_url(run_dir, pass_name, generation, unit), entry.to_json().encode()):
        return entry
    return read_entry(run_dir, pass_name, generation, unit)


def committed_units(run_dir: str, pass_name: str, generation: str) -> set[str]:
    """Return the ids of the units that exist in a generation, whether or not the pass is committed."""
    found = files.names(files.join(run_dir, "manifest", pass_name, generation))
    return {name.removesuffix(".json") for name in found if name.endswith(".json")}


def read_entry(run_dir: str, pass_name: str, generation: str, unit: str) -> Entry:
    """Return the entry of one unit; raises `UserError` if it does not exist."""
    url = _entry_url(run_dir, pass_name, generation, unit)
    try:
        return Entry.from_json(files.read(url), where=url)
    except FileNotFoundError as error:
        raise explain(
            what=f"pass `{pass_name}` has no committed unit `{unit}`",
            where=url,
            fix="run the same command again; where the entry was lost after the pass was committed, remove its "
            "pass.json under manifest/ first",
        ) from error


def read_object(run_dir: str, stored: StoredObject) -> bytes:
    """Return the bytes of a committed object; raises `UserError` naming the file if they are not what was written."""
    url = files.join(run_dir, stored.path)
    try:
        data = files.read(url)
    except FileNotFoundError as error:
        raise _damaged(url, "is missing") from error
    if len(data) != stored.bytes:
        raise _damaged(url, f"has {len(data)} bytes instead of {stored.bytes}")
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise _damaged(url, f"has the right size, {stored.bytes} bytes, but other content")
    return data


def commit_pass(run_dir: str, manifest: Manifest) -> None:
    """Make a pass real, then remove what belongs to it and is named by none of its entries."""
    files.write(_pass_url(run_dir, manifest.pass_name), manifest.to_json().encode())
    for path in garbage(run_dir, manifest.pass_name):
        files.remove(files.join(run_dir, path))


def read_pass(run_dir: str, pass_name: str) -> Manifest | None:
    """Return the manifest of a committed pass, None if it is not committed."""
    url = _pass_url(run_dir, pass_name)
    try:
        return Manifest.from_json(files.read(url), where=url)
    except FileNotFoundError:
        return None


def withdraw(run_dir: str, pass_names: set[str]) -> None:
    """Make passes, and all that were built on them, uncommitted; their objects stay until the next commit."""
    found = [read_pass(run_dir, name) for name in files.names(files.join(run_dir, "manifest"))]
    committed = [manifest for manifest in found if manifest is not None]
    names = set(pass_names)
    while more := {m.pass_name for m in committed if m.after in names} - names:
        names |= more
    for name in sorted(names):
        files.remove(_pass_url(run_dir, name))


def entries(run_dir: str, manifest: Manifest) -> Iterator[Entry]:
    """Yield the entries of a committed pass, units in order."""
    for unit in manifest.units:
        yield read_entry(run_dir, manifest.pass_name, manifest.generation, unit)


def content_hash(all_entries: list[Entry]) -> str:
    """Return the hash of what the next pass can see; metrics and error texts are not part of it."""
    seen = [
        [entry.unit, kind, stored.sha256]
        for entry in all_entries
        for kind, stored in sorted(entry.objects.items())
        if kind in ("shard", "ledger") or kind.startswith("file/")
    ]
    return digest(canonical_json(seen))


def garbage(run_dir: str, pass_name: str | None = None) -> list[str]:
    """List the files of one pass, or of all, that no entry names; for a committed pass only its generation counts."""
    manifests = files.join(run_dir, "manifest")
    if pass_name is None:
        known = {name for folder in _FOLDERS for name in files.names(files.join(run_dir, folder))}
        return [
            path for name in sorted(known | set(files.names(manifests))) for path in garbage(run_dir, name)
        ]
    committed = read_pass(run_dir, pass_name)
    orphans: list[str] = []
    alive: set[str] = set()
    for generation in files.names(files.join(manifests, pass_name)):
        if generation == "pass.json":
            continue
        if generation.endswith(files.PARTIAL):
            orphans.append(files.join("manifest", pass_name, generation))
            continue
        for name in files.names(files.join(manifests, pass_name, generation)):
            dead = committed is not None and generation != committed.generation
            if dead or not name.endswith(".json"):
                orphans.append(files.join("manifest", pass_name, generation, name))
            else:
                entry = read_entry(run_dir, pass_name, generation, name.removesuffix(".json"))
                alive |= {stored.path for stored in entry.objects.values()}
    for folder in _FOLDERS:
        for name in files.names(files.join(run_dir, folder, pass_name)):
            path = files.join(folder, pass_name, name)
            if path not in alive:
                orphans.append(path)
    return orphans


def _object_path(kind: str, pass_name: str, unit: str, suffix: str) -> str:
    if kind.startswith("file/"):
        name = kind.removeprefix("file/")
        check_name(name, what="file")
        return files.join(_FILES, pass_name, f"{unit}.{suffix}.{name}")
    folder, ending = _PLACES[kind]
    return files.join(folder, pass_name, f"{unit}.{suffix}.{ending}")


def _entry_url(run_dir: str, pass_name: str, generation: str, unit: str) -> str:
    return files.join(run_dir, "manifest", pass_name, generation, f"{unit}.json")


def _pass_url(run_dir: str, pass_name: str) -> str:
    return files.join(run_dir, "manifest", pass_name, "pass.json")


def _plain(data: bytes, where: str) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise _damaged(where, f"is no JSON ({error})") from error
    if plain["schema_version"] != SCHEMA_VERSION:
        raise explain(
            what=f"schema version {plain['schema_version']}, this program reads version {SCHEMA_VERSION}",
            where=where,
            fix="use the version of infinity-mm that wrote the run (see run.json), or a new run_dir",
        )
    return plain


def _damaged(url: str, how: str) -> ValueError:
    return explain(
        what=f"a committed file {how}",
        where=url,
        fix="restore it from a backup; or remove its unit's entry and its pass.json under manifest/, and run again: "
        "replies come from the journal",
    )
