from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_mm.errors import UserError
from infinity_mm.record import Call, ImageRef, ImageSlot, Region, Sample, Score, Tag, Text, Turn
from infinity_mm.storage.shards import jsonl_bytes, read_jsonl, read_shard, read_table, shard_bytes

CAT = ImageRef(sha256="c" * 64, uri="/img/cat.png", width=8, height=4)
FULL = Sample(
    id="b",
    images=(CAT,),
    turns=(Turn("user", (ImageSlot(0), Text("Where?"), Region(0, (0.1, 0.2)))),),
    tags=(Tag(name="cat", score=0.1 + 0.2),),
    instruction_type="location",
    question="Where?",
    style="short",
    answer="Hier ☂ \N{GRINNING FACE}",
    score=Score(overall=7, expected=6.5, flags=("vague",)),
    previous=(("there", None),),
    decision="keep",
    calls=(Call(stage="ask", model="m", prompt="p", key="k", temperature=0.0, seed=1),),
)


def test_samples_come_back_equal_and_in_id_order() -> None:
    bare = Sample(id="a", images=())
    assert read_shard(shard_bytes([FULL, bare]), where="here") == [bare, FULL]


def test_the_order_of_samples_does_not_show_in_the_bytes() -> None:
    others = [Sample(id=id_, images=()) for id_ in "acd"]
    assert shard_bytes([FULL, *others]) == shard_bytes([*others[::-1], FULL])


def test_the_columns_can_be_queried_without_the_record() -> None:
    table = pq.read_table(io.BytesIO(shard_bytes([FULL])))
    rows = table.drop_columns(["record"]).to_pylist()
    assert rows == [
        {
            "id": "b",
            "image_sha": ["c" * 64],
            "instruction_type": "location",
            "style": "short",
            "question": "Where?",
            "answer": "Hier ☂ \N{GRINNING FACE}",
            "score": 6.5,
            "decision": "keep",
        }
    ]


def test_an_empty_shard_is_a_shard() -> None:
    assert read_shard(shard_bytes([]), where="here") == []


def test_rows_of_another_schema_version_are_refused_by_name() -> None:
    sink = io.BytesIO()
    pq.write_table(
        pa.table({"record": ["{}"]}).replace_schema_metadata({"infinity_mm.schema_version": "99"}), sink
    )
    with pytest.raises(UserError, match=r"version 99, this program reads version 1\n.*shards/x\.parquet"):
        read_table(sink.getvalue(), where="shards/x.parquet")


def test_half_an_emoji_comes_back_as_it_was_and_is_readable_in_its_column() -> None:
    sample = Sample(id="a", images=(), answer="half \ud83d")
    data = shard_bytes([sample])
    assert read_shard(data, where="here") == [sample]
    assert pq.read_table(io.BytesIO(data)).column("answer").to_pylist() == ["half \ufffd"]


def test_an_emoji_in_two_halves_is_refused_because_json_would_join_them() -> None:
    with pytest.raises(UserError, match="one character as two surrogates"):
        shard_bytes([Sample(id="a", images=(), answer="\ud83d\ude00")])


def test_an_id_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="not valid Unicode"):
        shard_bytes([Sample(id="\ud800", images=())])


def test_set_aside_rows_are_sorted_json_lines_with_whole_samples() -> None:
    rows = [{"id": "b", "record": FULL}, {"id": "a", "error": "line\u2028end\n\ud800"}]
    data = jsonl_bytes(rows)
    assert data == jsonl_bytes(rows[::-1])
    first, second = read_jsonl(data)
    assert first == {"id": "a", "error": "line\u2028end\n\ud800"}
    assert second["record"]["question"] == "Where?"


_split = st.text(st.characters(), max_size=12)
texts = _split.map(lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"))
"""Any characters at all, lone surrogates among them, joined where two make one character."""
floats = st.floats(allow_nan=False, allow_infinity=False)
scores = st.builds(
    Score,
    overall=st.none() | st.integers(1, 10),
    expected=st.none() | floats,
    uncertainty=st.none() | floats,
    flags=st.lists(texts, max_size=2).map(tuple),
)
parts = st.one_of(
    st.builds(Text, texts),
    st.builds(ImageSlot, st.integers(0, 9)),
    st.builds(Region, st.integers(0, 9), st.lists(floats, max_size=4).map(tuple)),
)
samples = st.builds(
    Sample,
    id=st.text(st.characters(codec="utf-8"), max_size=8),
    images=st.lists(
        st.builds(ImageRef, sha256=st.just("c" * 64), uri=texts, width=st.integers(1), height=st.integers(1)),
        max_size=2,
    ).map(tuple),
    parents=st.lists(texts, max_size=2).map(tuple),
    turns=st.lists(
        st.builds(Turn, st.sampled_from(["system", "user"]), st.lists(parts, max_size=3).map(tuple)),
        max_size=2,
    ).map(tuple),
    tags=st.none() | st.lists(st.builds(Tag, name=texts, score=floats), max_size=2).map(tuple),
    examples=st.none() | st.lists(texts, max_size=2).map(tuple),
    question=st.none() | texts,
    style=st.none() | texts,
    answer=st.none() | texts,
    score=st.none() | scores,
    previous=st.lists(st.tuples(texts, st.none() | scores), max_size=2).map(tuple),
    decision=st.none() | texts,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(samples, max_size=4, unique_by=lambda sample: sample.id))
def test_any_samples_come_back_equal_and_give_the_same_bytes_again(some: list[Sample]) -> None:
    data = shard_bytes(some)
    back = read_shard(data, where="here")
    assert back == sorted(some, key=lambda sample: sample.id)
    assert shard_bytes(back) == data
