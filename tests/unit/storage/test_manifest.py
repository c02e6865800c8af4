from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.storage import files, manifest
from infinity_mm.storage.manifest import Entry, Manifest, StoredObject


def commit(run_dir: Path, unit: str, data: bytes = b"data", generation: str = "g1") -> Entry:
    return manifest.commit_unit(
        str(run_dir),
        pass_name="ask",
        unit=unit,
        generation=generation,
        objects={"shard": data},
        counts={"in": 1},
    )


ASK = Manifest(
    pass_name="ask",
    fingerprint="f",
    generation="g1",
    units=("00000", "00001"),
    totals={"in": 2},
    metrics={},
    content="c",
    after=None,
    seconds=0.5,
)


def test_an_entry_names_the_objects_with_size_and_hash(tmp_path: Path) -> None:
    entry = commit(tmp_path, "00000")
    stored = entry.objects["shard"]
    sha256 = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"
    assert stored == StoredObject(path=stored.path, bytes=4, sha256=sha256)
    assert stored.path.startswith("shards/ask/00000.")
    assert manifest.read_entry(str(tmp_path), "ask", "g1", "00000") == entry
    assert manifest.read_object(str(tmp_path), stored) == b"data"


def test_of_two_commits_the_first_wins_and_the_second_leaves_only_garbage(tmp_path: Path) -> None:
    first = commit(tmp_path, "00000", b"first")
    assert commit(tmp_path, "00000", b"second") == first
    assert manifest.read_object(str(tmp_path), first.objects["shard"]) == b"first"
    (orphan,) = manifest.garbage(str(tmp_path))
    assert files.read(str(tmp_path / orphan)) == b"second"


def test_objects_without_an_entry_are_no_shard(tmp_path: Path) -> None:
    files.write(str(tmp_path / "shards/ask/00000.aaaa.parquet"), b"killed before the entry")
    assert manifest.committed_units(str(tmp_path), "ask", "g1") == set()
    assert manifest.garbage(str(tmp_path)) == ["shards/ask/00000.aaaa.parquet"]


def test_a_pass_is_committed_by_its_own_entry_which_sweeps_what_no_entry_names(tmp_path: Path) -> None:
    run_dir = str(tmp_path)
    kept = [commit(tmp_path, unit).objects["shard"].path for unit in ASK.units]
    commit(tmp_path, "00000", b"second")
    commit(tmp_path, "00000", b"old", generation="g0")
    files.write(str(tmp_path / "shards/ask/x.parquet.partial"), b"half")
    files.write(str(tmp_path / "manifest/ask/g1/00001.json.1234.partial"), b"half")
    files.write(str(tmp_path / "shards/judge/x.parquet"), b"of another pass")
    assert manifest.read_pass(run_dir, "ask") is None
    manifest.commit_pass(run_dir, ASK)
    assert manifest.read_pass(run_dir, "ask") == ASK
    assert [f"shards/ask/{name}" for name in files.names(str(tmp_path / "shards/ask"))] == kept
    assert manifest.garbage(run_dir) == ["shards/judge/x.parquet"]
    assert [entry.unit for entry in manifest.entries(run_dir, ASK)] == ["00000", "00001"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (b"date", "right size, 4 bytes, but other content"),
        (b"dat", "3 bytes instead of 4"),
        (None, "is missing"),
    ],
)
def test_damage_is_found_and_the_file_named(tmp_path: Path, damage: bytes | None, problem: str) -> None:
    stored = commit(tmp_path, "00000").objects["shard"]
    (tmp_path / stored.path).unlink() if damage is None else (tmp_path / stored.path).write_bytes(damage)
    with pytest.raises(UserError, match=rf"{problem}\n.*{stored.path}"):
        manifest.read_object(str(tmp_path), stored)


def test_withdrawing_a_pass_withdraws_all_that_was_built_on_it(tmp_path: Path) -> None:
    run_dir = str(tmp_path)
    for name, after in [("read", None), ("ask", "read"), ("judge", "ask"), ("other", None)]:
        manifest.commit_pass(run_dir, replace(ASK, pass_name=name, after=after))
    manifest.withdraw(run_dir, {"ask"})
    left = [name for name in ("read", "ask", "judge", "other") if manifest.read_pass(run_dir, name)]
    assert left == ["read", "other"]


def test_an_entry_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    entry = replace(commit(tmp_path, "00000"), schema_version=99)
    files.write(str(tmp_path / "manifest/ask/g1/00000.json"), entry.to_json().encode())
    with pytest.raises(UserError, match="schema version 99"):
        manifest.read_entry(str(tmp_path), "ask", "g1", "00000")
    judge = replace(ASK, pass_name="judge", schema_version=99)
    files.write(str(tmp_path / "manifest/judge/pass.json"), judge.to_json().encode())
    with pytest.raises(UserError, match="schema version 99"):
        manifest.read_pass(str(tmp_path), "judge")


def test_a_name_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be part of a file name"):
        manifest.commit_unit(
            str(tmp_path), pass_name="ask", unit="0", generation="g", objects={"file/../x": b""}, counts={}
        )


def test_the_content_hash_sees_shards_and_files_but_not_metrics() -> None:
    def entry(**kinds: str) -> Entry:
        objects = {kind: StoredObject(path="p", bytes=1, sha256=sha) for kind, sha in kinds.items()}
        return Entry(pass_name="ask", unit="0", generation="g", objects=objects, counts={})

    base = manifest.content_hash([entry(shard="a", metrics="m")])
    assert manifest.content_hash([entry(shard="a", metrics="n")]) == base
    assert manifest.content_hash([entry(shard="b", metrics="m")]) != base
