from __future__ import annotations

import hashlib
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from toy_passes import Answers, Numbers

from infinity_mm.errors import UserError
from infinity_mm.record import ImageRef
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.vision.images import BadImage

CONFIG: dict[str, Any] = {
    "teacher": {"model": "m", "temperature": 0.5},
    "executor": {"kind": "local"},
    "seed": 1,
}


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    run = Run(str(tmp_path / "run"))
    run_passes([Numbers(), Answers()], run, LocalExecutor())
    return run


def test_a_relative_run_directory_is_made_absolute_and_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run("runs/a")
    assert run.path("shards", "x") == f"{tmp_path}/runs/a/shards/x"
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(run)) == run


def test_committed_samples_can_be_read_by_pass_and_by_unit(finished: Run) -> None:
    assert [sample.id for sample in finished.unit_samples("numbers", "00001")] == [
        "n0006", "n0008", "n0009", "n0011a", "n0011b",
    ]  # fmt: skip
    answers = list(finished.samples("answers"))
    assert [sample.id for sample in answers] == sorted(sample.id for sample in answers)
    assert answers[0].answer == "1?!"
    assert finished.read_file("numbers", "00001", "sum.txt") == b"51"


def test_what_was_set_aside_can_be_read_with_its_reason(finished: Run) -> None:
    assert [row["id"] for row in finished.dropped("numbers")] == ["n0000", "n0005", "n0010", "n0015", "n0020"]
    (row,) = finished.quarantined("numbers")
    assert row == {"id": "n0003", "stage": "sieve", "reason": "odd", "error": "three"}
    (merged,) = [line for line in finished.ledger("numbers") if line.fate == "merged"]
    assert (merged.id, merged.into) == ("n0007", ("n0008",))


def test_what_is_not_there_is_refused_by_name(finished: Run) -> None:
    with pytest.raises(UserError, match="pass `judge` is not committed"):
        list(finished.samples("judge"))
    with pytest.raises(UserError, match="no committed unit `00009`"):
        finished.unit_samples("numbers", "00009")
    with pytest.raises(UserError, match=r"has no file `plan`(.|\n)*it has: sum.txt"):
        finished.read_file("numbers", "00000", "plan")
    assert finished.manifest("judge") is None


def test_run_json_holds_configuration_seed_versions_and_commit(tmp_path: Path) -> None:
    Run(str(tmp_path)).start(CONFIG, seed=7)
    body = json.loads((tmp_path / "run.json").read_text())
    assert body["config"] == CONFIG
    assert body["seed"] == 7
    assert {"python", "pyarrow"} <= body["versions"].keys()
    assert "commit" in body


def test_the_same_run_directory_with_another_configuration_is_refused_naming_the_keys(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run.start(CONFIG, seed=7)
    run.start(CONFIG, seed=7)
    other = {**CONFIG, "teacher": {"model": "n", "temperature": 0.5}, "extra": []}
    with pytest.raises(UserError) as refused:
        run.start(other, seed=8)
    assert "extra: 'not set' -> []\n" in str(refused.value)
    assert "seed: 7 -> 8\n" in str(refused.value)
    assert "teacher.model: 'm' -> 'n'\n" in str(refused.value)
    assert "temperature" not in str(refused.value)


def test_where_and_how_fast_a_run_is_worked_may_change(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run.start(CONFIG, seed=7)
    run.start({**CONFIG, "executor": {"kind": "ray", "num_workers": 4}, "run_dir": "/moved"}, seed=7)


def test_other_library_versions_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(str(tmp_path))
    run.start(CONFIG, seed=7)
    body = json.loads((tmp_path / "run.json").read_text())
    body["versions"]["pyarrow"] = "1.0"
    (tmp_path / "run.json").write_text(json.dumps(body))
    with caplog.at_level(logging.WARNING):
        run.start(CONFIG, seed=7)
    assert "pyarrow was 1.0 when this run began" in caplog.text


def image(data: bytes, uri: str) -> ImageRef:
    return ImageRef(sha256=hashlib.sha256(data).hexdigest(), uri=uri, width=1, height=1)


def test_an_image_is_read_from_its_file_and_its_hash_is_checked(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    file = tmp_path / "cat.png"
    file.write_bytes(b"cat")
    cat = image(b"cat", str(file))
    assert run.images.read(cat) == b"cat"
    file.write_bytes(b"dog")
    with pytest.raises(BadImage, match=r"changed_image: .*cat\.png"):
        run.images.read(cat)
    file.unlink()
    with pytest.raises(BadImage, match=r"missing_image: .*cat\.png"):
        run.images.read(cat)


def test_a_stored_image_is_found_by_content_even_after_the_run_has_moved(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    uri = run.store_image(b"cat")
    assert uri == run.store_image(b"cat")
    sha256 = hashlib.sha256(b"cat").hexdigest()
    assert uri == f"images/{sha256[:2]}/{sha256}"
    assert (tmp_path / "run" / uri).read_bytes() == b"cat"
    (tmp_path / "run").rename(tmp_path / "moved")
    assert Run(str(tmp_path / "moved")).images.read(image(b"cat", uri)) == b"cat"


def test_an_image_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="unreadable_image"):
        Run(str(tmp_path)).images.read(image(b"cat", str(tmp_path)))


def test_the_journal_lies_in_the_run_directory(tmp_path: Path) -> None:
    journal = Run(str(tmp_path)).journal("w0")
    journal.put("key", {"text": "hi"})
    journal.sync()
    assert len(list((tmp_path / "journal").iterdir())) == 1
