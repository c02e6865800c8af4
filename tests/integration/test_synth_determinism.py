"""One journal, one data set: the same bytes whatever works the run, in whatever order, and whatever is killed.

The teacher is a server that never says the same twice, so nothing but the journal can make two runs equal.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Self, final

import pytest
import ray
from aiohttp import web

from infinity_mm.config import load_config
from infinity_mm.runtime.executors import ExecutorConfig
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import Unit
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.work import Outcome, PassWork
from infinity_mm.storage import manifest
from infinity_mm.synth import run as synth_run
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "synth" / "tiny.yaml"
PASSES = ("read", "unique", "tag", "plan", "journeys", "dedup", "publish")
SOURCES = (
    "{kind: windtunnel, name: a, num_images: 11, world_seed: 1}",
    "{kind: windtunnel, name: b, num_images: 7, world_seed: 2}",
)
NUM_DRIVER_KILLS = 8
NUM_WORKER_KILLS = 2
IN_FLIGHT = 4


class Teacher:
    """A chat-completions server in a thread. What it says depends on the number of the call, not on what is asked.

    The number of a call is its `prompt_tokens`, so that a journal line tells which call it holds.
    """

    def __init__(self, *, delay_s: float = 0.02) -> None:
        self.asked: list[str] = []
        """Hash of the request, call by call."""
        self._delay_s = delay_s
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def journaled(self, run_dir: str | Path) -> set[str]:
        """Requests whose replies are in a run's journal, on disk."""
        values = [json.loads(line)["value"] for line in journal_lines(run_dir)]
        return {self.asked[value["prompt_tokens"]] for value in values if "prompt_tokens" in value}

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        call = len(self.asked)
        self.asked.append(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())
        draw = random.Random(call)
        await asyncio.sleep(self._delay_s * draw.uniform(0.5, 1.5))
        if draw.random() < 0.02:
            return web.json_response({"error": {"message": "busy"}}, status=draw.choice([429, 500, 503]))
        content = body["messages"][-1]["content"]
        text = say("".join(part["text"] for part in content if part["type"] == "text"), call, draw)
        finish = "length" if draw.random() < 0.03 else "stop"
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return web.json_response(
            {"choices": [choice], "usage": {"prompt_tokens": call, "completion_tokens": 3}}
        )


def say(prompt: str, call: int, draw: random.Random) -> str:
    """Mostly of use, sometimes a refusal, a loop, or nothing that can be read."""
    if prompt.startswith("Ask a question"):
        fine = f"How many shapes are near the one with number {call}?"
        return draw.choice([*[fine] * 9, "I'm sorry, I can't help with that.", f"Number {call} is blue."])
    if prompt.startswith("Can this be answered"):
        return draw.choice(["yes", "Yes.", "yes", "yes", "yes", "yes", "no", "perhaps"])
    if prompt.startswith("Judge from"):
        return draw.choice(["9", "10", "8/10", "Score: 9", "7", "6", "5", "3", "ten or so"])
    if found := re.search(r"^A: (.*)", prompt, re.MULTILINE | re.DOTALL):  # to be corrected
        return draw.choice([found[1].replace("red", "blue"), f"{found[1]} ({call})", f"No, {call}."])
    fine = f"There are {call} red shapes" + draw.choice([".", " and one more.", " in the picture."])
    return draw.choice([*[fine] * 9, "I cannot see the image.", "red blue " * 60])


def journal_lines(run_dir: str | Path) -> list[str]:
    """Whole lines of all segments."""
    segments = sorted(Path(run_dir, "journal").glob("*.jsonl"))
    return [line for segment in segments for line in segment.read_text().split("\n")[:-1]]


def settings(
    run_dir: str | Path, teacher: Teacher, *more: str, sources: Sequence[str] = SOURCES
) -> list[str]:
    """Overrides of the tiny configuration: 18 images in four units, the journeys in six."""
    spec = "kind: openai, model: teacher, revision: '1', backoff_s: 0.01"
    return [
        f"run_dir={run_dir}",
        f"read.sources=[{', '.join(sources)}]",
        "read.images_per_unit=5",
        "plan.questions_per_image=3",
        "images_per_shard=3",
        f"engines={{teacher: {{{spec}, max_in_flight: {IN_FLIGHT}, base_url: '{teacher.url}'}}}}",
        *more,
    ]


def configured(
    run_dir: str | Path, teacher: Teacher, *more: str, sources: Sequence[str] = SOURCES
) -> SynthConfig:
    return load_config(SynthConfig, TINY, settings(run_dir, teacher, *more, sources=sources))


def outputs(run_dir: str | Path) -> dict[str, str]:
    """Hash of every committed object by pass, unit and kind; metrics, which hold wall times, are left out."""
    run = Run(str(run_dir))
    found: dict[str, str] = {}
    for name in PASSES:
        committed = run.manifest(name)
        assert committed is not None
        for entry in manifest.entries(run.run_dir, committed):
            for kind, stored in entry.objects.items():
                if kind != "metrics":
                    manifest.read_object(run.run_dir, stored)  # checks the hash
                    found[f"{name}/{entry.unit}/{kind}"] = stored.sha256
    return found


def published(run_dir: str | Path) -> bytes:
    """The one published file."""
    return Run(str(run_dir)).read_file("publish", "00000", "train-00000-of-00001.parquet")


def check_ledger(run_dir: str | Path) -> dict[str, set[str]]:
    """Every id has one end, and what one pass puts out is what the next takes in; returns ids by their end."""
    run = Run(str(run_dir))
    before: set[str] | None = None
    all_ends: dict[str, set[str]] = {}
    for name in PASSES:
        lines = list(run.ledger(name))
        came_in = {line.id for line in lines if line.came_in}
        made = {id_ for line in lines if line.fate in ("expanded", "merged") for id_ in line.into} - came_in
        out = [sample.id for sample in run.samples(name)]
        last = {line.id: line.fate for line in lines}
        ends: dict[str, set[str]] = {"out": set(out)}
        for fate in ("expanded", "merged", "dropped", "quarantined"):
            ends[fate] = {id_ for id_, end in last.items() if end == fate}
        assert before is None or came_in == before, name
        assert len(out) == len(ends["out"]), name
        assert sum(len(ids) for ids in ends.values()) == len(set().union(*ends.values())), name
        assert set().union(*ends.values()) == came_in | made, name
        assert {row["id"] for row in run.dropped(name)} == ends["dropped"], name
        assert {row["id"] for row in run.quarantined(name)} == ends["quarantined"], name
        assert {id_ for line in lines if line.fate == "merged" for id_ in line.into} <= ends["out"], name
        before = ends["out"]
        all_ends |= {fate: all_ends.get(fate, set()) | ids for fate, ids in ends.items()}
    assert manifest.garbage(run.run_dir) == []
    return all_ends


def replayed(run_dir: Path, home: Path, teacher: Teacher) -> dict[str, str]:
    """What a run's journal, copied into an empty directory, gives without a model."""
    shutil.copytree(run_dir / "journal", home / "journal")
    num_asked = len(teacher.asked)
    run_synthesis(configured(home, teacher, "journal=replay"))
    assert len(teacher.asked) == num_asked
    return outputs(home)


@pytest.fixture(scope="module")
def teacher() -> Iterator[Teacher]:
    with Teacher() as running:
        yield running


@pytest.fixture(scope="module")
def recorded(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made once, by one process, with the teacher."""
    home = tmp_path_factory.mktemp("recorded") / "run"
    run_synthesis(configured(home, teacher))
    return home


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
        )
        yield
        ray.shutdown()


def test_the_recorded_run_has_every_fate_and_its_sums_agree_as_sets_of_ids(recorded: Path) -> None:
    ends = check_ledger(recorded)
    assert all(ends[fate] for fate in ("out", "expanded", "merged", "dropped", "quarantined"))
    summary = json.loads((recorded / "summary.json").read_text())
    assert summary["images_read"] == 18
    assert summary["pairs_rewritten"] > 0
    assert len(summary["dropped"].keys() | summary["quarantined"].keys()) >= 4
    assert len([key for key in outputs(recorded) if key.startswith("journeys/") and "shard" in key]) == 6


def test_a_finished_run_started_again_makes_no_call_and_writes_nothing_new(
    recorded: Path, teacher: Teacher
) -> None:
    before, num_asked = outputs(recorded), len(teacher.asked)
    run_synthesis(configured(recorded, teacher))
    assert len(teacher.asked) == num_asked
    assert outputs(recorded) == before


def test_a_fresh_journal_gives_other_bytes(recorded: Path, teacher: Teacher, tmp_path: Path) -> None:
    run_synthesis(configured(tmp_path, teacher))
    assert published(tmp_path) != published(recorded)


def test_a_replay_in_one_process_gives_the_same_bytes(
    recorded: Path, teacher: Teacher, tmp_path: Path
) -> None:
    assert replayed(recorded, tmp_path, teacher) == outputs(recorded)
    assert published(tmp_path) == published(recorded)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_ray_gives_the_same_bytes_as_one_process(
    cluster: None, recorded: Path, teacher: Teacher, tmp_path: Path, num_workers: int
) -> None:
    shutil.copytree(recorded / "journal", tmp_path / "journal")
    num_asked = len(teacher.asked)
    executor = ("executor.kind=ray", f"executor.num_workers={num_workers}")
    run_synthesis(configured(tmp_path, teacher, *executor))
    assert len(teacher.asked) == num_asked
    assert outputs(tmp_path) == outputs(recorded)


@final
class Shuffled:
    """The local executor, given the units in another order."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._local = LocalExecutor()

    def map(self, work: PassWork, units: Sequence[Unit]) -> Generator[Outcome, None, None]:
        return self._local.map(work, self._draw.sample(units, len(units)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_units_worked_in_another_order_give_the_same_bytes(
    recorded: Path, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(config: ExecutorConfig) -> Shuffled:
        return Shuffled(seed=1)

    monkeypatch.setattr(synth_run, "make_executor", shuffled)
    assert replayed(recorded, tmp_path, teacher) == outputs(recorded)


def test_sources_in_another_order_and_another_cut_publish_the_same_bytes(
    recorded: Path, teacher: Teacher, tmp_path: Path
) -> None:
    shutil.copytree(recorded / "journal", tmp_path / "journal")
    more = ("journal=replay", "read.images_per_unit=7", "images_per_shard=4")
    turned = settings(tmp_path, teacher, *more, sources=SOURCES[::-1])
    run_synthesis(load_config(SynthConfig, TINY, turned))
    assert published(tmp_path) == published(recorded)
    assert check_ledger(tmp_path) == check_ledger(recorded)
    for name in PASSES[1:]:
        ours, theirs = (sorted(s.to_json() for s in Run(str(d)).samples(name)) for d in (tmp_path, recorded))
        assert ours == theirs


def progress(run_dir: Path, num_calls: int) -> int:
    """Grows from 0 while a run goes on: committed units and calls."""
    return len(list(run_dir.glob("manifest/*/*/*.json"))) + num_calls


def test_a_driver_killed_at_any_moment_goes_on_to_what_its_own_journal_gives(
    recorded: Path, teacher: Teacher, tmp_path: Path
) -> None:
    home = tmp_path / "run"
    command = [sys.executable, str(ROOT / "pipelines" / "synth.py"), "--config", str(TINY), "--quiet"]
    command += settings(home, teacher)
    draw = random.Random(0)
    begin = len(teacher.asked)
    most = progress(recorded, len(journal_lines(recorded)))
    for strike in sorted(draw.sample(range(1, most * 3 // 4), NUM_DRIVER_KILLS)):
        answered, mark = teacher.journaled(home), len(teacher.asked)
        driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while progress(home, len(teacher.asked) - begin) < strike and driver.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        os.killpg(driver.pid, signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
        assert not answered & set(teacher.asked[mark:])
    answered, mark = teacher.journaled(home), len(teacher.asked)
    assert answered
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not answered & set(teacher.asked[mark:])
    check_ledger(home)
    assert outputs(home) == replayed(home, tmp_path / "replay", teacher)


def actor_pids() -> list[int]:
    """Ray actors under this process."""
    parents: dict[int, int] = {}
    actors: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        pid = int(folder.name)
        parents[pid] = int(stat.rsplit(")", 1)[1].split()[1])
        if line.startswith(b"ray::_Actor"):
            actors.append(pid)

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return sorted(filter(is_ours, actors))


def test_what_a_killed_worker_had_journaled_is_not_asked_again_by_another(
    cluster: None, recorded: Path, teacher: Teacher, tmp_path: Path
) -> None:
    home = tmp_path / "run"
    shutil.copytree(
        recorded, home, ignore=shutil.ignore_patterns("journeys", "dedup", "publish", "*-journeys-*")
    )
    assert teacher.journaled(home) == set()
    draw = random.Random(0)
    begin = len(teacher.asked)
    num_calls = len(teacher.journaled(recorded))
    strikes = [
        draw.randrange(num_calls // 8, num_calls // 3),
        draw.randrange(num_calls // 2, num_calls * 3 // 4),
    ]
    kills: list[tuple[set[str], int]] = []

    def kill() -> None:
        for strike in strikes[:NUM_WORKER_KILLS]:
            while len(teacher.asked) - begin < strike:
                time.sleep(0.005)
            victim = draw.choice(actor_pids())
            os.kill(victim, signal.SIGKILL)
            while victim in actor_pids():
                time.sleep(0.005)
            kills.append((teacher.journaled(home), len(teacher.asked)))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run_synthesis(configured(home, teacher, "executor.kind=ray", "executor.num_workers=2"))
    killer.join(10)
    assert len(kills) == NUM_WORKER_KILLS
    for answered, mark in kills:
        assert answered
        assert not answered & set(teacher.asked[mark:])
    check_ledger(home)
    assert outputs(home) == replayed(home, tmp_path / "replay", teacher)
