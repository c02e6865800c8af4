import json
import os
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import fsspec
import pytest

from infinity_mm.errors import UserError
from infinity_mm.storage import segments
from infinity_mm.storage.journal import Journal, find_entries


def test_a_synced_value_is_read_back_by_the_next_opening(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    journal.put("k", {"text": "a “red” circle\n\ud800", "logprobs": [-0.1, -2.3000000000000003]})
    journal.sync()
    assert Journal(str(tmp_path), "w1").get("k") == {
        "text": "a “red” circle\n\ud800",
        "logprobs": [-0.1, -2.3000000000000003],
    }
    assert Journal(str(tmp_path), "w1").get("other") is None


def test_reading_alone_writes_nothing(tmp_path: Path) -> None:
    Journal(str(tmp_path / "journal"), "w0").sync()
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_canonical_json_with_its_checksum_first(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    journal.put("k", {"b": 1, "a": "é"})
    journal.sync()
    (segment,) = tmp_path.iterdir()
    text = segment.read_text(encoding="utf-8")
    assert text.endswith(',"key":"k","value":{"a":"é","b":1}}\n')
    assert list(json.loads(text)) == ["check", "key", "value"]
    assert segment.name.startswith("00000001-w0-")


def test_put_returns_the_first_value_of_a_key_as_json_keeps_it(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    assert journal.put("k", {"pair": (1, 2)}) == {"pair": [1, 2]}
    assert journal.put("k", {"pair": (3, 4)}) == {"pair": [1, 2]}


def test_a_value_that_is_read_can_be_changed_without_changing_the_journal(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    journal.put("k", {"list": [1]})["list"].append(2)
    assert journal.get("k") == {"list": [1]}


def test_a_number_that_json_lacks_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    with pytest.raises(ValueError, match="JSON"):
        journal.put("k", {"x": float("nan")})
    assert len(journal) == 0


def test_each_opening_writes_its_own_segment_with_a_larger_number(tmp_path: Path) -> None:
    for text in ("first", "second"):
        journal = Journal(str(tmp_path), "w0")
        journal.put(text, {})
        journal.sync()
        journal.put(text + " again", {})
        journal.sync()
    assert [file.name[:12] for file in sorted(tmp_path.iterdir())] == ["00000001-w0-", "00000002-w0-"]


def test_of_two_workers_values_the_earlier_segments_wins_for_every_later_reader(tmp_path: Path) -> None:
    first, second = Journal(str(tmp_path), "a"), Journal(str(tmp_path), "b")
    first.put("other", {})
    first.sync()
    second.put("k", {"text": "from b"})
    second.sync()
    first.put("k", {"text": "from a"})
    first.sync()
    assert second.get("k") == {"text": "from b"}
    assert second.refresh() == 1, "only `other` is new to it"
    assert second.get("k") == {"text": "from b"}, "an answer once given is never replaced"
    assert Journal(str(tmp_path), "c").get("k") == {"text": "from a"}


def test_a_few_keys_are_found_by_the_same_rule_without_holding_the_journal(tmp_path: Path) -> None:
    first, second = Journal(str(tmp_path), "w1"), Journal(str(tmp_path), "w0")
    for journal, keys in ((first, "ab"), (second, "bc")):
        for key in keys:
            journal.put(key, {"by": journal is first, "text": '"key":"z"'})
        journal.sync()
    found = find_entries(str(tmp_path), ["a", "b", "z"])
    assert {key: value["by"] for key, value in found.items()} == {"a": True, "b": True}
    assert found["b"] == Journal(str(tmp_path), "w2").get("b")
    assert find_entries(str(tmp_path / "nothing"), ["a"]) == {}


def test_a_damaged_line_of_a_key_that_is_looked_up_is_named(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    journal.put("k", {"text": "red"})
    journal.sync()
    (segment,) = tmp_path.iterdir()
    segment.write_bytes(segment.read_bytes().replace(b"red", b"rad"))
    with pytest.raises(UserError, match=f"{segment.name}, line 1"):
        find_entries(str(tmp_path), ["k"])
    assert find_entries(str(tmp_path), ["other"]) == {}


def test_refresh_reads_what_others_wrote_since_and_counts_it(tmp_path: Path) -> None:
    reader, writer = Journal(str(tmp_path), "r"), Journal(str(tmp_path), "w")
    for round_ in range(3):
        writer.put(f"a{round_}", {})
        writer.put(f"b{round_}", {})
        writer.sync()
        assert reader.refresh() == 2
        assert reader.refresh() == 0
    assert writer.refresh() == 0, "its own segment is not read again"


def test_a_torn_last_line_is_ignored_and_read_once_it_is_whole(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    journal.put("a", {})
    journal.put("b", {})
    journal.sync()
    (segment,) = tmp_path.iterdir()
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-5])
    reader = Journal(str(tmp_path), "w1")
    assert (reader.get("a"), reader.get("b")) == ({}, None)
    segment.write_bytes(whole)
    reader.refresh()
    assert reader.get("b") == {}


@pytest.mark.parametrize("damage", ["value", "key", "check", "not json"])
def test_a_bad_line_in_the_middle_is_an_error_that_names_file_and_line(tmp_path: Path, damage: str) -> None:
    journal = Journal(str(tmp_path), "w0")
    for key in ("a", "b", "c"):
        journal.put(key, {"text": "xyz"})
    journal.sync()
    (segment,) = tmp_path.iterdir()
    lines = segment.read_bytes().split(b"\n")
    lines[1] = {
        "value": lines[1].replace(b"xyz", b"xyy"),
        "key": lines[1].replace(b'"b"', b'"d"'),
        "check": lines[1][:12] + (b"0" if lines[1][12:13] != b"0" else b"1") + lines[1][13:],
        "not json": b"\0" * 40,
    }[damage]
    segment.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError) as error:
        Journal(str(tmp_path), "w1")
    assert f"{segment}, line 2" in str(error.value)


def test_a_failed_write_leaves_no_half_line_and_the_next_sync_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(str(tmp_path), "w0")
    journal.put("a", {})
    journal.sync()
    journal.put("b", {})
    write, fails = os.write, [True]

    def half_full_disk(handle: int, data: bytes) -> int:
        if fails and not fails.pop():
            raise OSError(28, "No space left on device")
        if fails == []:
            fails.append(False)
            return write(handle, bytes(data)[:7])
        return write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half_full_disk)
        with pytest.raises(OSError, match="No space"):
            journal.sync()
    assert len(Journal(str(tmp_path), "w1")) == 1
    journal.sync()
    assert len(Journal(str(tmp_path), "w2")) == 2


def test_after_sync_a_kill_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from infinity_mm.storage.journal import Journal\n"
        f"journal = Journal({str(tmp_path)!r}, 'w0')\n"
        "n = 0\n"
        "while True:\n"
        "    for _ in range(7):\n"
        "        journal.put(f'k{n}', {'n': n, 'text': 'x' * 300})\n"
        "        n += 1\n"
        "    journal.sync()\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    synced = 0
    for _ in range(random.Random(0).randint(20, 60)):
        synced = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    synced = max([synced, *(int(line) for line in process.stdout.read().splitlines())])
    process.wait()
    process.stdout.close()
    journal = Journal(str(tmp_path), "w1")
    assert [journal.get(f"k{i}") for i in range(synced)] == [
        {"n": i, "text": "x" * 300} for i in range(synced)
    ]


def test_threads_that_put_and_sync_at_once_lose_nothing(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")

    def work(thread: int) -> None:
        for i in range(50):
            journal.put(f"{thread}/{i}", {"i": i})
            if i % 5 == 0:
                journal.sync()
        journal.sync()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Journal(str(tmp_path), "w1")) == 400


def test_a_worker_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file name"):
        Journal(str(tmp_path), "../w0")


def test_an_open_journal_holds_where_lines_are_and_not_the_lines(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    for number in range(1000):
        journal.put(f"k{number}", {"text": "x" * 20_000})
    journal.sync()
    tracemalloc.start()
    reader = Journal(str(tmp_path), "w1")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000, "of 20 MB"
    assert reader.get("k999") == {"text": "x" * 20_000}


def test_a_line_that_was_damaged_after_the_opening_is_not_given_out(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "w0")
    journal.put("k", {"text": "red"})
    journal.sync()
    (segment,) = tmp_path.iterdir()
    segment.write_bytes(segment.read_bytes().replace(b"red", b"rad"))
    with pytest.raises(UserError, match="the line at byte 0"):
        journal.get("k")


def test_keys_and_long_values_of_any_text_are_found_again(tmp_path: Path) -> None:
    values = {'","value":': "a", '\\"': "b" * 5000, "": "c" * 9000, "é\ud800": "d"}
    journal = Journal(str(tmp_path), "w0")
    for key, text in values.items():
        journal.put(key, {"text": text})
    journal.sync()
    for reader in (journal, Journal(str(tmp_path), "w1")):
        assert {key: reader.get(key) for key in values} == {k: {"text": text} for k, text in values.items()}


def test_lines_of_objects_that_were_folded_after_the_opening_are_still_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "FOLD_PARTS", 3)
    monkeypatch.setattr(segments, "_BLOCK_BYTES", 16)
    url = "memory://test_folded"
    writer = Journal(url, "w0")
    for number in range(2):
        writer.put(f"k{number}", {"n": number})
        writer.sync()
    reader = Journal(url, "w1")
    writer.put("k2", {"n": 2})
    writer.sync()
    assert len(fsspec.filesystem("memory").ls("/test_folded", detail=False)) == 1
    assert [reader.get(f"k{n}") for n in range(3)] == [{"n": 0}, {"n": 1}, None]
    assert [writer.get(f"k{n}") for n in range(3)] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_on_an_object_store_every_sync_is_an_object_of_its_own() -> None:
    url = "memory://test_journal"
    journal, other = Journal(url, "w0"), Journal(url, "w1")
    for key in ("a", "b"):
        journal.put(key, {"key": key})
        journal.sync()
    other.put("c", {})
    other.sync()
    assert other.refresh() == 2
    reopened = Journal(url, "w2")
    assert [reopened.get(key) for key in "abc"] == [{"key": "a"}, {"key": "b"}, {}]
    names = sorted(
        name.rpartition("/")[2] for name in fsspec.filesystem("memory").ls("/test_journal", detail=False)
    )
    assert [name[:12] for name in names] == ["00000001-w0-", "00000001-w0-", "00000002-w1-"]


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    journal = Journal(f"file://{tmp_path}", "w0")
    for key in ("a", "b"):
        journal.put(key, {})
        journal.sync()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(Journal(str(tmp_path), "w1")) == 2
