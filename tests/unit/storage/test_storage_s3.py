"""The storage functions and the journal against a real S3 server on loopback."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "loopback"))
from loopback_s3 import BUCKET, LoopbackS3  # pyright: ignore[reportMissingImports]

from infinity_mm.errors import UserError
from infinity_mm.storage import files, segments
from infinity_mm.storage.journal import Journal


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackS3]:
    with LoopbackS3() as running, pytest.MonkeyPatch.context() as patch:
        running.use(patch)
        yield running


@pytest.fixture
def base(server: LoopbackS3, request: pytest.FixtureRequest) -> Iterator[str]:
    server.restart()
    yield f"s3://{BUCKET}/{request.node.name}"
    server.restart()


def test_what_is_written_is_read_back_listed_and_removed(base: str) -> None:
    files.write(f"{base}/a/one", b"1")
    files.write(f"{base}/a/two", b"2")
    files.write(f"{base}/a/two", b"23")
    files.write(f"{base}/a/b/three", b"3")
    assert (files.read(f"{base}/a/two"), files.read(f"{base}/a/two", start=1)) == (b"23", b"3")
    assert files.names(f"{base}/a") == ["b", "one", "two"]
    assert files.sizes(f"{base}/a") == {"one": 1, "two": 2}
    assert files.exists(f"{base}/a")
    files.remove(f"{base}/a/one")
    files.remove(f"{base}/a/one")
    assert not files.exists(f"{base}/a/one")
    assert files.names(f"{base}/nowhere") == []
    assert files.sizes(f"{base}/nowhere") == {}
    with pytest.raises(FileNotFoundError):
        files.read(f"{base}/a/one")


def test_of_many_that_create_one_object_exactly_one_wins(base: str) -> None:
    gate = threading.Barrier(8)
    won: list[bytes] = []

    def create(data: bytes) -> None:
        gate.wait()
        if files.create(f"{base}/entry", data):
            won.append(data)

    threads = [threading.Thread(target=create, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [files.read(f"{base}/entry")]


def test_a_server_error_is_tried_again(base: str, server: LoopbackS3) -> None:
    server.restart(before=lambda number, *_: "refuse" if number <= 2 else None)
    files.write(f"{base}/a", b"a")
    assert files.read(f"{base}/a") == b"a"
    assert len(server.writes) == 3


def test_a_creation_whose_answer_was_lost_is_there_but_does_not_count_as_ours(
    base: str, server: LoopbackS3
) -> None:
    server.restart(after=lambda number, *_: "lose" if number == 1 else None)
    assert not files.create(f"{base}/a", b"a")
    assert files.read(f"{base}/a") == b"a"


def test_a_store_that_is_away_for_a_moment_is_waited_for(base: str, server: LoopbackS3) -> None:
    port = server.close()
    opener = threading.Timer(0.3, server.open, [port])
    opener.start()
    files.write(f"{base}/a", b"a")
    opener.join()
    assert files.read(f"{base}/a") == b"a"


def test_a_store_that_does_not_answer_is_said_as_such(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(files, "_S3_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    files._s3.cache_clear()
    try:
        with pytest.raises(UserError, match=r"does not answer(.|\n)*AWS_ENDPOINT_URL"):
            files.write(f"{base}/a", b"a")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        files._s3.cache_clear()


def test_a_missing_bucket_is_said_as_such(base: str) -> None:
    with pytest.raises(UserError, match="there is no bucket `nowhere`"):
        files.create("s3://nowhere/a", b"a")


def test_missing_credentials_are_said_as_such(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    files._s3.cache_clear()
    try:
        with pytest.raises(UserError, match=r"no credentials(.|\n)*AWS_ACCESS_KEY_ID"):
            files.write(f"{base}/a", b"a")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        files._s3.cache_clear()


def test_without_s3fs_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['s3fs'] = None; from infinity_mm.storage import files; files.read('s3://b/a')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'infinity-mm[s3]'" in done.stderr


def test_a_journal_without_append_folds_its_objects_and_keeps_the_first_of_two(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FOLD_PARTS", 3)
    first, second = Journal(f"{base}/journal", "a"), Journal(f"{base}/journal", "b")
    first.put("k0", {"by": "a"})
    first.sync()
    second.put("k0", {"by": "b"})
    for number in range(1, 8):
        second.put(f"k{number}", {"n": number})
        second.sync()
    assert len(files.sizes(f"{base}/journal")) == 1 + 2 + 1
    assert first.refresh() == 7
    again = Journal(f"{base}/journal", "c")
    assert len(again) == 8
    assert again.get("k0") == {"by": "a"}
    assert [again.get(f"k{n}") for n in range(1, 8)] == [{"n": n} for n in range(1, 8)]


def test_a_reader_that_listed_objects_which_were_folded_meanwhile_looks_again(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FOLD_PARTS", 2)
    writer = Journal(f"{base}/journal", "a")
    writer.put("k0", {"n": 0})
    writer.sync()
    sizes = files.sizes
    calls = 0

    def slow(url: str) -> dict[str, int]:
        nonlocal calls
        calls += 1
        found = sizes(url)
        if calls == 1:
            writer.put("k1", {"n": 1})
            writer.sync()
        return found

    monkeypatch.setattr(files, "sizes", slow)
    reader = Journal(f"{base}/journal", "b")
    assert (reader.get("k0"), reader.get("k1")) == ({"n": 0}, {"n": 1})
