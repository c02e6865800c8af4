"""Publishing to a Hub on loopback: killed at any point and repeated, `main` shows all of a set or nothing of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "loopback"))
from committed_run import make_run  # noqa: E402 # pyright: ignore[reportMissingImports]
from loopback_hub import TOKEN, Blob, LoopbackHub  # noqa: E402 # pyright: ignore[reportMissingImports]

from infinity_mm.publishing.run_bundle import run_bundle  # noqa: E402

pytestmark = pytest.mark.integration

NAME = "datasets/me/squares"
Strike = Callable[["Publisher"], dict[str, Any]]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    home = str(tmp_path_factory.mktemp("run") / "squares")
    make_run(home)
    return home


class Publisher:
    """`infinity-mm publish` in its own process; what it prints is kept, to be searched for the token."""

    def __init__(self, hub: LoopbackHub, home: Path, *command: str, script: Path | None = None) -> None:
        self.hub, self.output = hub, ""
        begin = [str(script)] if script else ["-c", "from infinity_mm.cli import main; main()", "publish"]
        self._command = [sys.executable, *begin, *command]
        self.home = home
        self._env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.started = threading.Event()

    def run(self, *more: str, strike: Strike | None = None, **env: str) -> int:
        self.started.clear()
        self.hub.restart(**(strike(self) if strike else {}))
        self._process = subprocess.Popen(
            [*self._command, *more],
            env={**self._env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.set()
        printed, _ = self._process.communicate(timeout=120)
        self.output += printed
        self.last = printed
        return self._process.returncode

    def kill(self) -> None:
        self.started.wait(60)
        os.killpg(self._process.pid, signal.SIGKILL)


def at(when: str, method: str, pattern: str, count: int = 1) -> Strike:
    """Kill before or after the count-th write of this kind is done; after it, nothing more is done."""

    def strike(publisher: Publisher) -> dict[str, Any]:
        left = count

        def hook(number: int, got: str, path: str) -> str | None:
            nonlocal left
            if left > 0 and got == method and re.search(pattern, path):
                left -= 1
                if left == 0:
                    publisher.kill()
            return ("refuse" if when == "before" else "lose") if left <= 0 else None

        return {when: hook}

    return strike


def in_the_middle_of_an_upload(publisher: Publisher) -> dict[str, Any]:
    struck = False

    def half(number: int, path: str) -> bool:
        nonlocal struck
        if struck or sum("/storage/" in path for _, path in publisher.hub.writes) < 2:
            return struck
        struck = True
        publisher.kill()
        return True

    return {"mid_upload": half}


POINTS: dict[str, Strike] = {
    "before the branch is made": at("before", "POST", "/branch/"),
    "in the middle of an upload": in_the_middle_of_an_upload,
    "after the commit on the branch": at("after", "POST", "/commit/infinity-mm-upload-"),
    "before the commit on main": at("before", "POST", "/commit/main"),
    "after the commit on main": at("after", "POST", "/commit/main"),
}


def expected(run_dir: str) -> dict[str, str]:
    return {file.path: file.sha256 for file in run_bundle(run_dir, repo="me/squares").files}


def hashes(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def check_whole(hub: LoopbackHub, run_dir: str, *, before: dict[str, str] | None = None) -> None:
    """Main is the set, every state it ever had was the set or what was there before, and the branch is gone."""
    whole = expected(run_dir)
    repo = hub.repos[NAME]
    assert hashes(hub.main(NAME)) == whole
    for tree in repo.seen:
        shown = {path: hashlib.sha256(blob.data).hexdigest() for path, blob in tree.items()}
        shown.pop(".gitattributes", None)
        assert shown in ({}, whole, before)
    assert set(repo.branches) == {"main"}


def check_silent(publisher: Publisher) -> None:
    """The token was used, and is nowhere to be read; nor is a signed address."""
    assert publisher.hub.tokens == {f"Bearer {TOKEN}"}
    assert publisher.hub.leaks == []
    kept = [file.read_bytes() for file in publisher.home.rglob("*") if file.is_file()]
    for text in (publisher.output.encode(), *kept, *publisher.hub.main(NAME).values()):
        assert TOKEN.encode() not in text
        assert b"signed-and-secret" not in text


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_and_repeated_main_shows_the_whole_set_at_once(
    hub: LoopbackHub, run_dir: str, tmp_path: Path, point: str
) -> None:
    publisher = Publisher(hub, tmp_path / "hf", run_dir, "--repo", "me/squares")
    assert publisher.run(strike=POINTS[point]) == -signal.SIGKILL, publisher.output
    if point != "after the commit on main":
        assert hub.main(NAME) == {}
    sent = list(hub.uploads)
    assert publisher.run() == 0, publisher.output
    check_whole(hub, run_dir)
    check_silent(publisher)
    assert len(set(hub.uploads)) == len(hub.uploads) == 5, "an object was sent twice"
    assert hub.uploads[: len(sent)] == sent
    assert len([tree for tree in hub.repos[NAME].seen if len(tree) > 1]) == 1
    if (
        point == list(POINTS)[-1]
    ):  # a third time: nothing to do, nothing written but the deletion that finds nothing
        commits = len(hub.repos[NAME].commits)
        assert publisher.run() == 0, publisher.output
        assert "main has this very set" in publisher.last
        assert len(hub.repos[NAME].commits) == commits


def test_a_new_set_replaces_an_old_one_at_once_and_spares_the_files_of_others(
    hub: LoopbackHub, run_dir: str, tmp_path: Path
) -> None:
    more = str(tmp_path / "more" / "squares")
    make_run(more, num_units=5)
    publisher = Publisher(hub, tmp_path / "hf", more, "--repo", "me/squares")
    assert publisher.run() == 0, publisher.output
    old = hashes(hub.main(NAME))
    assert old == expected(more)
    repo = hub.repos[NAME]
    repo.seen.clear()
    tree = dict(repo.commits[repo.branches["main"]])
    repo.commit("main", tree | {"LICENSE": Blob(b"of the owner", False)})
    repo.seen.clear()

    again = Publisher(hub, tmp_path / "hf", run_dir, "--repo", "me/squares")
    assert again.run("--json") == 0, again.output
    assert {path for path in old if path not in expected(run_dir)} == {
        f"data/train-{n:05d}-of-00005.parquet" for n in range(5)
    }
    main = hashes(hub.main(NAME))
    assert main.pop("LICENSE") == hashlib.sha256(b"of the owner").hexdigest()
    assert main == expected(run_dir)
    assert len(repo.seen) == 1


def test_a_dry_run_writes_nothing_and_needs_no_login(hub: LoopbackHub, run_dir: str, tmp_path: Path) -> None:
    arguments = (run_dir, "--repo", "me/squares", "--dry-run")
    publisher = Publisher(hub, tmp_path / "hf", *arguments, script=ROOT / "pipelines" / "publish.py")
    assert publisher.run(HF_TOKEN="") == 0, publisher.output
    assert "would be created" in publisher.last
    assert "data/train-00000-of-00004.parquet" in publisher.last
    assert "not logged in" in publisher.last
    assert hub.writes == []
    assert hub.repos == {}


def test_without_a_login_and_with_a_wrong_one_the_error_says_what_to_do(
    hub: LoopbackHub, run_dir: str, tmp_path: Path
) -> None:
    publisher = Publisher(hub, tmp_path / "hf", run_dir, "--repo", "me/squares")
    assert publisher.run(HF_TOKEN="") == 2
    assert "hf auth login" in publisher.last
    assert hub.writes == []
    wrong = "hf_WrongSecretToken9876543210"
    assert publisher.run(HF_TOKEN=wrong) == 2
    assert "hf auth login" in publisher.last
    assert wrong not in publisher.last
    assert "Traceback" not in publisher.last


def test_private_is_asked_for_and_an_existing_public_repository_is_refused(
    hub: LoopbackHub, run_dir: str, tmp_path: Path
) -> None:
    publisher = Publisher(hub, tmp_path / "hf", run_dir, "--repo", "me/squares", "--private")
    assert publisher.run() == 0, publisher.output
    assert hub.repos[NAME].private
    hub.repos[NAME].private = False
    assert publisher.run() == 2
    assert "is public" in publisher.last


def test_a_hub_that_fails_now_and_then_is_asked_again(hub: LoopbackHub, run_dir: str, tmp_path: Path) -> None:
    publisher = Publisher(hub, tmp_path / "hf", run_dir, "--repo", "me/squares")

    def faults(_: Publisher) -> dict[str, Any]:
        seen: set[str] = set()

        def once(number: int, method: str, path: str) -> str | None:
            key = re.sub(r"[0-9a-f]{12,}", "x", path)
            return None if key in seen or seen.add(key) else "lose"

        return {"after": once}

    assert publisher.run(strike=faults) == 0, publisher.output
    check_whole(hub, run_dir)
    check_silent(publisher)


def test_two_processes_that_publish_the_same_set_at_once_both_end_well(
    hub: LoopbackHub, run_dir: str, tmp_path: Path
) -> None:
    both = [Publisher(hub, tmp_path / name, run_dir, "--repo", "me/squares") for name in ("a", "b")]
    codes: list[int] = []
    threads = [threading.Thread(target=lambda p=p: codes.append(p.run())) for p in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0], both[0].output + both[1].output
    check_whole(hub, run_dir)
    assert len([tree for tree in hub.repos[NAME].seen if len(tree) > 1]) == 1


READER = """
import json, sys
from datasets import load_dataset
streaming = sys.argv[1] == "streaming"
rows = load_dataset("me/squares", split="train", streaming=streaming)
out = []
for row in rows:
    image = row["images"][0].convert("RGB")
    out.append([row["id"], row["messages"], image.size, list(image.getpixel((0, 0)))])
print(json.dumps(out))
"""


def test_the_data_set_loads_from_the_hub_as_the_card_says_and_equals_the_runs_files(
    hub: LoopbackHub, run_dir: str, tmp_path: Path
) -> None:
    publisher = Publisher(hub, tmp_path / "hf", run_dir, "--repo", "me/squares")
    assert publisher.run() == 0, publisher.output
    hub.restart()
    shards = sorted(Path(run_dir, "files", "publish").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(shard) for shard in shards]).to_pylist()
    want = []
    for row in rows:
        image = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        color = image.getpixel((0, 0))
        assert isinstance(color, tuple)
        want.append([row["id"], row["messages"], list(image.size), list(color)])
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "reader"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(python(READER, "whole")) == want
    assert json.loads(python(READER, "streaming")) == want
    card = hub.main(NAME)["README.md"].decode()
    printed = python(card.partition("```python\n")[2].partition("```")[0])
    assert "(64, 48)" in printed
    assert "What | is <b>number</b> 0?" in printed
    assert hub.writes == []


def test_a_checkpoint_is_published_as_a_model_with_its_card(hub: LoopbackHub, tmp_path: Path) -> None:
    model = ROOT / "infinity_mm" / "windtunnel" / "models" / "nano-teacher"
    home = tmp_path / "stage2" / "model"
    (home / "trainer").mkdir(parents=True)
    for file in model.iterdir():
        (home / file.name).write_bytes(file.read_bytes())
    (home / "trainer" / "optimizer.safetensors").write_bytes(b"x")
    (home / "old.bin").write_bytes(b"pickle")
    first = tmp_path / "stage1"
    (first / "model").mkdir(parents=True)
    data = [{"kind": "windtunnel", "weight": 1.0, "options": {"world_seed": 3}}]
    for folder, start, steps in ((first, "nano-base", 300), (home.parent, str(first / "model"), 940)):
        config = {"model": {"path": start}, "data": data, "steps": steps, "seed": 0}
        (folder / "run.json").write_text(json.dumps({"config": config, "versions": {"torch": "2.13.0"}}))
    (home.parent / "eval-world1.json").write_text(
        json.dumps({"accuracy": 0.448, "accuracy_blank_image": 0.272})
    )

    publisher = Publisher(hub, tmp_path / "hf", str(home), "--repo", "me/teacher")
    assert publisher.run("--json") == 0, publisher.output
    main = hub.main("models/me/teacher")
    assert main["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert set(main) == {f.name for f in model.iterdir()} | {"infinity_mm.json"}
    assert "left out: old.bin (a pickle" in publisher.last
    assert "trainer/optimizer.safetensors" in publisher.last
    card = main["README.md"].decode()
    assert "2 stage(s), from `nano-base`" in card
    assert "| eval-world1.json | accuracy | 0.448 |" in card
    assert str(tmp_path) not in card
    assert "infinity_mm" in card
