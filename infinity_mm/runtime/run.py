"""A run directory: its paths, its committed samples and files, its images, its journal.

runs/<name>/  run.json  lock/  manifest/  shards/  dropped/  quarantine/  ledger/  metrics/  files/
              images/  journal/
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from infinity_mm.errors import explain
from infinity_mm.record import Sample, canonical_json
from infinity_mm.runtime.images import RunImages
from infinity_mm.runtime.ledger import Line, read_ledger
from infinity_mm.runtime.paths import absolute
from infinity_mm.storage import files, manifest
from infinity_mm.storage.manifest import Entry, Manifest
from infinity_mm.storage.shards import read_jsonl, read_shard

if TYPE_CHECKING:
    from infinity_mm.runtime.link import Link
    from infinity_mm.storage.journal import Journal

EXECUTION_KEYS = frozenset(
    {"run_dir", "executor", "num_workers", "cpus_per_worker", "threads", "address", "budget"}
)
"""Configuration that decides where and how fast, not what: it may change when a run is resumed."""
_PACKAGES = ("infinity-mm", "torch", "transformers", "pyarrow", "pillow", "numpy", "ray")
_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Run:
    """One run directory. Small and picklable: workers get a copy."""

    run_dir: str
    """Absolute path or URL; a relative path is made absolute, or refused under a submitted job."""
    link: Link | None = field(default=None, compare=False, repr=False)
    """In a worker: its line to the driver, for counts under way and for what may be spent."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_dir", absolute(self.run_dir, what="run_dir"))

    def path(self, *parts: str) -> str:
        """Return a path or URL inside the run directory."""
        return files.join(self.run_dir, *parts)

    def start(self, config: Mapping[str, Any], *, seed: int) -> None:
        """Write run.json, or check that this run directory was started with the same configuration.

        Raises `UserError` naming the keys that differ; those in `EXECUTION_KEYS`, at any depth, may.
        """
        found = _versions()
        body = {"config": dict(config), "seed": seed, "versions": found, "commit": _commit()}
        text = json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if files.create(self.path("run.json"), text.encode()):
            return
        before = json.loads(files.read(self.path("run.json")))
        old = _flat(before["config"]) | {"seed": before["seed"]}
        new = _flat(json.loads(canonical_json(config))) | {"seed": seed}
        changed = [
            f"{key}: {old.get(key, 'not set')!r} -> {new.get(key, 'not set')!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, _UNSET) != new.get(key, _UNSET) and not EXECUTION_KEYS & set(key.split("."))
        ]
        if changed:
            raise explain(
                what="this run directory was started with another configuration:\n    "
                + "\n    ".join(changed),
                where=self.path("run.json"),
                fix="give a new run_dir, or the old values; to start over, remove the old run directory",
            )
        for name, version in found.items():
            if before["versions"].get(name) != version:
                was = before["versions"].get(name)
                _log.warning("%s was %s when this run began and is %s now", name, was, version)

    def manifest(self, pass_name: str) -> Manifest | None:
        """Return the manifest of a committed pass, None if it is not committed."""
        return manifest.read_pass(self.run_dir, pass_name)

    def samples(self, pass_name: str) -> Iterator[Sample]:
        """Yield the committed samples of a pass: units in order, ids in order within each."""
        for entry in self._entries(pass_name):
            yield from self._shard(entry)

    def unit_samples(self, pass_name: str, unit_id: str) -> list[Sample]:
        """Return the committed samples of one unit, in id order."""
        return self._shard(self._entry(pass_name, unit_id))

    def num_samples(self, pass_name: str, unit_id: str) -> int:
        """Return how many samples a unit committed, without reading them: a driver must not hold them."""
        return self._entry(pass_name, unit_id).counts["out"]

    def read_file(self, pass_name: str, unit_id: str, name: str) -> bytes:
        """Return one of the `files` that a unit committed."""
        entry = self._entry(pass_name, unit_id)
        if f"file/{name}" not in entry.objects:
            there = [kind.removeprefix("file/") for kind in entry.objects if kind.startswith("file/")]
            raise explain(
                what=f"unit `{unit_id}` of pass `{pass_name}` has no file `{name}`",
                where=self.run_dir,
                fix=f"it has: {', '.join(there) or 'no files'}",
            )
        return manifest.read_object(self.run_dir, entry.objects[f"file/{name}"])

    def committed_files(self, pass_name: str) -> list[tuple[str, str]]:
        """Return (name, path inside the run directory) of all `files` of a committed pass, by name."""
        return sorted(
            (kind.removeprefix("file/"), stored.path)
            for entry in self._entries(pass_name)
            for kind, stored in entry.objects.items()
            if kind.startswith("file/")
        )

    def ledger(self, pass_name: str) -> Iterator[Line]:
        """Yield the ledger of a committed pass."""
        for entry in self._entries(pass_name):
            stored = entry.objects["ledger"]
            yield from read_ledger(manifest.read_object(self.run_dir, stored), where=stored.path)

    def dropped(self, pass_name: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of all samples that a committed pass dropped."""
        yield from self._rows(pass_name, "dropped")

    def quarantined(self, pass_name: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of all samples that raised in a committed pass."""
        yield from self._rows(pass_name, "quarantined")

    @property
    def images(self) -> RunImages:
        """Reads the bytes behind image references."""
        return RunImages(self.path("images"))

    def store_image(self, data: bytes) -> str:
        """Keep image bytes that have no file of their own, by content; returns where in the run directory."""
        return self.images.store(data)

    def journal(self, worker: str) -> Journal:
        """Open the journal of model outputs for one writer."""
        from infinity_mm.storage.journal import Journal

        return Journal(self.path("journal"), worker)

    def _committed(self, pass_name: str) -> Manifest:
        found = self.manifest(pass_name)
        if found is None:
            raise explain(
                what=f"pass `{pass_name}` is not committed",
                where=self.run_dir,
                fix="run the same command again to finish it",
            )
        return found

    def _entry(self, pass_name: str, unit: str) -> Entry:
        generation = self._committed(pass_name).generation
        return manifest.read_entry(self.run_dir, pass_name, generation, unit)

    def _entries(self, pass_name: str) -> Iterator[Entry]:
        return manifest.entries(self.run_dir, self._committed(pass_name))

    def _shard(self, entry: Entry) -> list[Sample]:
        stored = entry.objects["shard"]
        return read_shard(manifest.read_object(self.run_dir, stored), where=self.path(stored.path))

    def _rows(self, pass_name: str, kind: str) -> Iterator[dict[str, Any]]:
        for entry in self._entries(pass_name):
            if kind in entry.objects:
                yield from read_jsonl(manifest.read_object(self.run_dir, entry.objects[kind]))


_UNSET = object()


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists are values."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flat(item, f"{path}.{key}" if path else str(key)).items()
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The git commit of this package's checkout, with `+` if it was changed since; None without git."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        if commit.returncode != 0:
            return None
        changes = subprocess.run(
            [*here, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
