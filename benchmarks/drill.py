"""What the fault drill works with: a teacher that keeps count, a run that is disturbed, and the comparison.

    Teacher (own process) <--calls-- driver (own process, pipelines/synth.py) --writes--> run directory
          \\--calls by key--> Drill.row() <--hashes of all committed objects, ledger as sets, journal--/

Nothing here knows a fault; those are in `faults.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from nodes import Nodes
from PIL import Image
from stub_server import Service, StubServer, completion, http

from infinity_mm.runtime.run import Run
from infinity_mm.storage import manifest

ROOT = Path(__file__).parents[1]
PASSES = ("read", "unique", "tag", "plan", "journeys", "dedup", "publish")
IN_FLIGHT = 4
"""Calls at once of one worker."""
UNSYNCED = 8
"""Replies that a worker may have got and not yet written when it is killed."""
DELAY_S = 0.04
GIVE_UP_S = 200


class Teacher(Service):
    """Says the same to the same request; how often it was asked each is counted by a hash of the request.

    The hash is the reply's `prompt_tokens`, so that a journal line tells which request it answers.
    """

    trouble: str | None = None
    """What goes wrong: a status, or garbage, truncated, half, never; None: nothing."""
    one_in = 1
    """What share of the requests it meets, on their first two tries; 1: every call."""
    exact = True
    """Whether the reply depends on the request alone; else on the number of the call as well."""

    def reset(self, exact: bool = True) -> None:
        """Forget the run before."""
        self.calls: list[tuple[int, bool]] = []
        """Request and whether it was answered well, call by call."""
        self.tries: Counter[int] = Counter()
        self.exact = exact
        self.disturb(None)

    def disturb(self, trouble: str | None, one_in: int = 1) -> None:
        """From now on."""
        self.trouble, self.one_in = trouble, one_in

    def pace(self, delay_s: float) -> None:
        """Seconds before each reply, from now on."""
        self.delay_s = delay_s

    def so_far(self, start: int = 0) -> list[tuple[int, bool]]:
        """Calls from a number on."""
        return self.calls[start:]

    def num_good(self) -> int:
        """Calls answered well."""
        return sum(good for _, good in self.calls)

    def answer(self, body: bytes) -> bytes | None:
        """A reply, or the trouble of the hour."""
        key = int.from_bytes(hashlib.sha256(body).digest()[:5])
        self.tries[key] += 1
        is_hit = self.one_in == 1 or (key % self.one_in == 0 and self.tries[key] <= 2)
        trouble = self.trouble if is_hit else None
        self.calls.append((key, trouble is None))
        said = say(body, random.Random(key if self.exact else f"{key} {len(self.calls)}"))
        good = http(completion(said, prompt_tokens=key))
        match trouble:
            case None:
                return good
            case "garbage":
                return http(b"<html>Bad gateway, but status 200</html>")
            case "truncated":
                body = good.partition(b"\r\n\r\n")[2]
                return http(body[: len(body) // 2])
            case "half":
                return good[:-20]
            case "never":
                return None
            case status:
                return http(b'{"error": {"message": "trouble"}}', int(status))


def say(body: bytes, draw: random.Random) -> str:
    """Mostly of use, sometimes a refusal or nothing that can be read."""
    content = json.loads(body)["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    number = draw.randrange(10**6)
    if prompt.startswith("Write one question"):
        return draw.choice([*[f"What stands beside dot {number} in this picture?"] * 9, "NONE"])
    if prompt.startswith("Somebody was shown"):
        return draw.choice(["yes", "Yes.", "yes", "yes", "yes", "yes", "no", "perhaps"])
    if prompt.startswith("Grade"):
        return draw.choice(["9", "10", "8/10", "7", "6", "5", "3", "ten or so"])
    return draw.choice(
        [*[f"Dot {number} stands beside a darker one, at the left edge."] * 9, "I cannot see it."]
    )


def write_inputs(folder: Path, num_images: int) -> None:
    """Small pictures of noise, no two alike, and the configuration of the drill."""
    (folder / "images").mkdir(parents=True)
    for number in range(num_images):
        pixels = random.Random(number).randbytes(3 * 48 * 48)
        Image.frombytes("RGB", (48, 48), pixels).save(folder / "images" / f"{number:04d}.png")
    config = {
        "name": "drill",
        "run_dir": str(folder / "run"),
        "read": {"sources": [{"kind": "folder", "path": str(folder / "images")}], "images_per_unit": 6},
        "tagger": {"model": "none"},
        "plan": {"tree": "any_picture", "seeds": "tree", "questions_per_image": 2},
        "engines": {},
        "images_per_shard": 3,
    }
    (folder / "drill.yaml").write_text(yaml.safe_dump(config))


def outputs(run_dir: str | Path) -> dict[str, str]:
    """Hash of every committed object by pass, unit and kind, checked; metrics, which hold wall times, are left out."""
    run, found = Run(str(run_dir)), {}
    for name in PASSES:
        committed = run.manifest(name)
        if committed is None:
            raise ValueError(f"pass {name} is not committed")
        for entry in manifest.entries(run.run_dir, committed):
            for kind, stored in entry.objects.items():
                manifest.read_object(run.run_dir, stored)
                found[f"{name}/{entry.unit}/{kind}"] = stored.sha256
    return {key: value for key, value in found.items() if not key.endswith("/metrics")}


def sums_agree(run_dir: str | Path) -> bool:
    """The conservation law, counted anew from the ledger, the samples and the rows set aside, as sets of ids."""
    run, before = Run(str(run_dir)), None
    for name in PASSES:
        lines = list(run.ledger(name))
        came_in = {line.id for line in lines if line.came_in}
        made = {id_ for line in lines if line.fate in ("expanded", "merged") for id_ in line.into} - came_in
        last = {line.id: line.fate for line in lines}
        ends = {fate: {id_ for id_, end in last.items() if end == fate} for fate in set(last.values())}
        ends["continued"] = {sample.id for sample in run.samples(name)}
        whole = set().union(*ends.values())
        if (
            before not in (None, came_in)
            or whole != came_in | made
            or len(whole) != sum(map(len, ends.values()))
        ):
            return False
        if {row["id"] for row in run.dropped(name)} != ends.get("dropped", set()):
            return False
        if {row["id"] for row in run.quarantined(name)} != ends.get("quarantined", set()):
            return False
        before = ends["continued"]
    return manifest.garbage(run.run_dir) == []


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """The run that nothing happened to."""

    folder: Path
    outputs: Mapping[str, str]
    num_calls: int


@dataclass(kw_only=True)
class Drill:
    """One run that is disturbed: starts and ends drivers, and takes notes."""

    reference: Undisturbed
    folder: Path
    server: StubServer
    nodes: Nodes | None = None
    """The cluster that drivers work on, with two workers; None: each driver is its own worker."""
    exact: bool = True
    story: list[str] = field(default_factory=list)
    """How each driver ended, in order."""
    kills: int = 0
    lines_lost: int = 0
    """Journal lines that the drill removed: their requests may be asked again."""
    _marks: list[tuple[int, set[int]]] = field(default_factory=list)

    @property
    def num_workers(self) -> int:
        """Processes that call the server; all of them go with their driver."""
        return 1 if self.nodes is None else 2

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(
        self, *overrides: str, env: Mapping[str, str] | None = None, file_bytes: int | None = None
    ) -> subprocess.Popen[str]:
        """A driver; `file_bytes` is the most that the operating system lets its workers write into one file."""
        engine = f"kind: openai, model: stub, revision: '1', base_url: '{self.server.url}', backoff_s: 0.01"
        engine += f", max_in_flight: {IN_FLIGHT}, timeout_s: 2"
        script = [str(ROOT / "pipelines" / "synth.py"), "--config", str(self.reference.folder / "drill.yaml")]
        command = [
            sys.executable,
            *script,
            "--quiet",
            f"run_dir={self.run_dir}",
            f"engines.teacher={{{engine}}}",
        ]
        if self.nodes is not None:
            on = f"kind: ray, num_workers: {self.num_workers}, address: '{self.nodes.address}'"
            command.append(f"executor={{{on}}}")

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
            if file_bytes is not None and self.nodes is None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        plain = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        driver = subprocess.Popen(
            [*command, *overrides],
            cwd=ROOT,
            env=os.environ | plain | dict(env or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        )
        if file_bytes is not None and self.nodes is not None:
            threading.Thread(target=self._limit_workers, args=(driver, file_bytes), daemon=True).start()
        return driver

    def _limit_workers(self, driver: subprocess.Popen[str], file_bytes: int) -> None:
        """Those that Ray starts for it, as soon as they are there."""
        assert self.nodes is not None
        while driver.returncode is None:
            with suppress(psutil.NoSuchProcess):  # one that has just ended
                for worker in self.nodes.workers():
                    worker.rlimit(psutil.RLIMIT_FSIZE, (file_bytes, file_bytes))
            time.sleep(0.05)

    def wait(self, driver: subprocess.Popen[str], share: float) -> None:
        """Until a share of the calls of the whole run has been answered, or the driver has ended."""
        deadline = time.monotonic() + GIVE_UP_S
        while self.server.tell("num_good") < share * self.reference.num_calls and driver.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the run does not get on")
            time.sleep(0.02)

    def kill(self, pid: int, *, reap: subprocess.Popen[str] | None = None) -> None:
        """SIGKILL, and a note of what the journal holds from now on."""
        os.kill(pid, signal.SIGKILL)
        if reap is not None:
            reap.communicate()
            self.story.append("killed")
        self.kills += 1 if reap is None else self.num_workers
        self.mark()

    def mark(self) -> None:
        """Nothing that the journal holds now may be asked for after this."""
        known = {
            line["value"]["prompt_tokens"] for line in self.journal() if "prompt_tokens" in line["value"]
        }
        self._marks.append((len(self.server.tell("so_far")), known))

    def finish(self, driver: subprocess.Popen[str], *, to: int | None = 0) -> str:
        """Wait for the end, with this exit status; None: any but 0. Returns the first line of what it said."""
        _, said = driver.communicate(timeout=GIVE_UP_S)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if (driver.returncode == 0) if to is None else (driver.returncode != to):
            raise RuntimeError(f"exit status {driver.returncode}, expected {to}: {said[-3000:]}")
        self.story.append(
            "ended" if driver.returncode == 0 else f"stopped: {(errors or [said[-300:]])[0][7:]}"
        )
        return said

    def journal(self) -> Iterator[dict]:
        """Whole lines of all segments."""
        for segment in sorted(self.run_dir.glob("journal/*.jsonl")):
            for line in segment.read_bytes().split(b"\n")[:-1]:
                yield json.loads(line)

    def replayed(self) -> dict[str, str]:
        """What a copy of the journal gives in an empty directory, without a model."""
        twin = Drill(reference=self.reference, folder=self.folder / "replay", server=self.server)
        twin.run_dir.mkdir(parents=True)
        (self.run_dir / "journal").rename(twin.run_dir / "journal")
        twin.finish(twin.start("journal=replay"))
        return outputs(twin.run_dir)

    def result(self) -> Result:
        """Compare."""
        calls, asked_again = self.server.tell("so_far"), 0
        for mark, known in self._marks:
            asked_again += sum(key in known for key, good in calls[mark:] if good)
        good = Counter(key for key, is_good in calls if is_good)
        agree = sums_agree(self.run_dir)
        found = outputs(self.run_dir)
        wanted = self.reference.outputs if self.exact else self.replayed()
        return Result(
            story=", then ".join(self.story),
            is_same=found == wanted,
            sums_agree=agree,
            num_calls=good.total(),
            resent=good.total() - len(good),
            bound=(IN_FLIGHT + UNSYNCED) * self.kills,
            asked_again=max(0, asked_again - self.lines_lost),
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one disturbed run came to."""

    story: str
    is_same: bool
    """Every committed object is that of the undisturbed run; where the engine is not exact, of the journal's replay."""
    sums_agree: bool
    num_calls: int
    """Answered well."""
    resent: int
    """Of these, requests that had been answered before."""
    bound: int
    """Calls in flight plus eight not yet synced, for each process that was killed."""
    asked_again: int
    """Of the resent, those whose reply was in the journal."""

    @property
    def holds(self) -> bool:
        """Whether everything promised is so."""
        return self.is_same and self.sums_agree and self.resent <= self.bound and self.asked_again == 0


def clear(said: str) -> bool:
    """Whether an error says what, where and how to mend it, and no traceback."""
    return (
        bool(re.search(r"^error: .+\n  where: .+\n  fix: ", said, re.MULTILINE)) and "Traceback" not in said
    )


@contextmanager
def prepared(
    folder: Path, *, num_images: int = 24, delay_s: float = DELAY_S
) -> Iterator[tuple[StubServer, Undisturbed]]:
    """The server, and the undisturbed run."""
    write_inputs(folder, num_images)
    service = Teacher(delay_s=delay_s)
    service.reset()
    with StubServer(service) as server:
        bare = Undisturbed(folder=folder, outputs={}, num_calls=0)
        first = Drill(reference=bare, folder=folder / "undisturbed", server=server)
        first.finish(first.start())
        calls = server.tell("num_good")
        yield server, Undisturbed(folder=folder, outputs=outputs(first.run_dir), num_calls=calls)
