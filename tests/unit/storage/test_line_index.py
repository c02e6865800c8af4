import random

import pytest

from infinity_mm.storage import line_index
from infinity_mm.storage.line_index import LineIndex


def test_lines_are_found_in_the_order_in_which_they_were_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_index, "_MOST_RECENT", 4)
    rng = random.Random(0)
    index = LineIndex()
    added: dict[bytes, list[tuple[str, int]]] = {}
    for number in range(500):
        key, place = str(rng.randrange(300)).encode(), (f"file{number // 50}", number << 20)
        index.add(key, *place)
        added.setdefault(key, []).append(place)
    assert len(index) == len(added)
    for key, places in added.items():
        found = index.find(key)
        assert found[0] == places[0]
        assert found == sorted(found)
    assert index.find(b"300") == []


def test_keys_with_one_hash_are_both_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_index, "hash", lambda key: 7, raising=False)
    index = LineIndex()
    index.add(b"a", "file", 0)
    index.add(b"b", "file", 10)
    assert len(index) == 1, "this many different hashes"
    assert index.find(b"b") == [("file", 0), ("file", 10)]
