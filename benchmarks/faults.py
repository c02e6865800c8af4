"""The fault drill: a small synthesis run, disturbed in every way we could think of, compared with one that was not.

    python benchmarks/faults.py [--only NAME ...] [--skip-ray | --on-ray]

A stub server answers each request by a pure function of it after 40 ms and counts. Each fault below gets a run of its
own and brings it to its end, starting the same command again where the run stopped or was killed. One Markdown row per
run: what happened, whether every committed object has the bytes of the undisturbed run, whether the ledger's sets
agree, how many requests were sent again, how many of these although their reply was in the journal (none may be).
The faults of a cluster run on several raylets on this machine, the others in one process, or with `--on-ray` on two
raylets as well.
Exits with 1 if one run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from drill import DELAY_S, Drill, Result, Undisturbed, clear, prepared
from nodes import Nodes
from stub_server import StubServer

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
static long jump(void) {  /* an hour forward, an hour back, every second */
    struct timespec now;
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    real(CLOCK_MONOTONIC, &now);
    return now.tv_sec % 2 ? 3600 : -3600;
}
int clock_gettime(clockid_t clock, struct timespec *out) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, out);
    if (clock == CLOCK_REALTIME) out->tv_sec += jump();
    return code;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec, out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""
"""A clock that jumps for one process: the machine's own would jump for everybody."""


def refused(drill: Drill, driver: subprocess.Popen[str], what: str) -> None:
    """The driver stops with an error that says what, where and how to mend it."""
    said = drill.finish(driver, to=2)
    if not clear(said) or what not in said:
        raise RuntimeError(f"expected a clear error about {what!r}: {said[-3000:]}")


# The driver.


def driver_killed(drill: Drill, *, shares: tuple[float, ...]) -> None:
    for share in shares:
        driver = drill.start()
        drill.wait(driver, share)
        drill.kill(driver.pid, reap=driver)
    drill.finish(drill.start())


def driver_interrupted(drill: Drill, *, number: signal.Signals) -> None:
    driver = drill.start()
    drill.wait(driver, 0.5)
    driver.send_signal(number)
    drill.finish(driver, to=None)
    drill.story[-1] = f"stopped by {number.name}"
    drill.kills += drill.num_workers
    drill.mark()
    drill.finish(drill.start())


def driver_frozen(drill: Drill) -> None:
    driver = drill.start()
    drill.wait(driver, 0.4)
    driver.send_signal(signal.SIGSTOP)
    time.sleep(5)  # more than a call may take: all that were under way have been lost
    refused(drill, drill.start(), "is working in this run directory")
    driver.send_signal(signal.SIGCONT)
    drill.kills += drill.num_workers  # replies that came while it slept were never read
    drill.finish(driver)


def second_driver(drill: Drill) -> None:
    first = drill.start()
    drill.wait(first, 0.3)
    drill.server.tell("pace", 0.5)  # it must still be there when the second one has started
    refused(drill, drill.start(), "is working in this run directory")
    drill.server.tell("pace", DELAY_S)
    drill.finish(first)


def clock_jumps(drill: Drill) -> None:
    library = drill.folder / "clock.so"
    source = library.with_suffix(".c")
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    preload = {"LD_PRELOAD": str(library)}
    now = [sys.executable, "-c", "import time; print(time.time())"]
    said = subprocess.run(now, env=os.environ | preload, capture_output=True, text=True, check=True).stdout
    if abs(float(said) - time.time()) < 1000:
        raise RuntimeError("the clock does not jump on this machine")
    if drill.nodes is None:
        drill.finish(drill.start(env=preload))
        return
    # As `ray job submit` hands it over: workers are no children of the driver.
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": preload}})}
    driver = drill.start(env=preload | job)
    drill.wait(driver, 0.3)
    for worker in drill.nodes.workers():
        if str(library) not in Path(f"/proc/{worker.pid}/maps").read_text():
            raise RuntimeError("the clock does not jump in a worker")
    drill.finish(driver)


# The server.


def some_calls(drill: Drill, *, trouble: str, one_in: int = 3) -> None:
    drill.server.tell("disturb", trouble, one_in)
    drill.finish(drill.start())


def every_call(drill: Drill, *, trouble: str) -> None:
    driver = drill.start("max_failed_share=0")
    drill.wait(driver, 0.4)
    drill.server.tell("disturb", trouble)
    refused(drill, driver, "calls of a shard failed")
    drill.server.tell("disturb", None)
    drill.mark()
    drill.finish(drill.start())


def server_away(drill: Drill, *, seconds: float) -> None:
    driver = drill.start()
    drill.wait(driver, 0.4)
    drill.server.tell("go_away")
    drill.kills += drill.num_workers  # calls under way are lost as in a kill
    time.sleep(seconds)
    drill.server.tell("come_back")
    drill.finish(driver)


def server_away_too_long(drill: Drill) -> None:
    driver = drill.start("engines.teacher.max_down_s=2")
    drill.wait(driver, 0.4)
    drill.server.tell("go_away")
    drill.kills += drill.num_workers
    refused(drill, driver, "calls of a shard failed")
    drill.server.tell("come_back")
    drill.mark()
    drill.finish(drill.start("engines.teacher.max_down_s=2"))


# The disk.


def disk_full(drill: Drill, *, file_bytes: int, what: str) -> None:
    refused(drill, drill.start(file_bytes=file_bytes), what)
    drill.kills += drill.num_workers
    drill.mark()
    drill.finish(drill.start())


def tmpfs_full(drill: Drill) -> None:
    drill.run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(drill.run_dir)], check=True)
    try:
        refused(drill, drill.start(), "No space left on device")
        drill.kills += drill.num_workers
        drill.mark()
        subprocess.run(["mount", "-o", "remount,size=50m", str(drill.run_dir)], check=True)
        drill.finish(drill.start())
        copy = drill.folder / "copy"
        shutil.copytree(drill.run_dir, copy)
    finally:
        subprocess.run(["umount", str(drill.run_dir)], check=True)
    drill.run_dir.rmdir()
    copy.rename(drill.run_dir)


def stopped_in_journeys(drill: Drill) -> None:
    driver = drill.start()
    drill.wait(driver, 0.6)
    drill.kill(driver.pid, reap=driver)


def shard_damaged(drill: Drill, *, how: str) -> None:
    stopped_in_journeys(drill)
    entry = min(drill.run_dir.glob("manifest/journeys/*/*.json"))
    stored = json.loads(entry.read_text())["objects"]["shard"]["path"]
    spoil(drill.run_dir / stored, how)
    refused(drill, drill.start(), "a committed file")
    entry.unlink()  # the fix that the error names; the replies are in the journal
    (entry.parents[1] / "pass.json").unlink()
    drill.finish(drill.start())


def entry_damaged(drill: Drill) -> None:
    stopped_in_journeys(drill)
    entry = min(drill.run_dir.glob("manifest/journeys/*/*.json"))
    spoil(entry, "cut")
    refused(drill, drill.start(), str(entry))
    entry.unlink()
    drill.finish(drill.start())


def journal_torn(drill: Drill) -> None:
    stopped_in_journeys(drill)
    segment = min(drill.run_dir.glob("journal/*.jsonl"))
    with segment.open("ab") as file:
        file.write(b'{"check":"0123456789ab","key":"cut off by a pow')
    drill.finish(drill.start())


def journal_damaged(drill: Drill) -> None:
    stopped_in_journeys(drill)
    segment = min(drill.run_dir.glob("journal/*.jsonl"))
    spoil(segment, "flip")
    refused(drill, drill.start(), "does not match its checksum")
    lines = segment.read_bytes().split(b"\n")
    middle = segment.stat().st_size // 2
    place = next(i for i in range(len(lines)) if sum(map(len, lines[: i + 1])) + i >= middle)
    segment.write_bytes(b"\n".join(lines[:place] + lines[place + 1 :]))
    drill.lines_lost = 1
    drill.finish(drill.start())


def lock_left(drill: Drill) -> None:
    """Of a driver on another host that gives no sign of life."""
    stopped_in_journeys(drill)
    (lock,) = drill.run_dir.glob("lock/*.json")
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"host": "elsewhere"}))
    drill.finish(drill.start())


def spoil(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


# A cluster of several raylets.


@contextmanager
def on_nodes(drill: Drill, number: int) -> Iterator[Nodes]:
    """Drivers that are started inside work on a cluster of their own."""
    with Nodes(number) as nodes:
        drill.nodes = nodes
        yield nodes
    drill.nodes = None


def worker_killed(drill: Drill, *, shares: tuple[float, ...]) -> None:
    with on_nodes(drill, 2) as nodes:
        driver = drill.start()
        for share in shares:
            drill.wait(driver, share)
            drill.kill(nodes.workers()[0].pid)
        drill.finish(driver)


def node_killed(drill: Drill, *, comes_back: bool) -> None:
    with on_nodes(drill, 2) as nodes:
        driver = drill.start()
        drill.wait(driver, 0.4)
        nodes.kill_one()
        drill.kills += 1
        drill.mark()
        if comes_back:
            drill.wait(driver, 0.6)
            nodes.add()
        drill.finish(driver)


def node_comes_late(drill: Drill) -> None:
    with on_nodes(drill, 1) as nodes:
        driver = drill.start()
        drill.wait(driver, 0.3)
        nodes.add()
        drill.finish(driver)


def ray_driver_killed(drill: Drill) -> None:
    with on_nodes(drill, 2):
        driver_killed(drill, shares=(0.5,))


def ray_second_driver(drill: Drill) -> None:
    with on_nodes(drill, 2):
        second_driver(drill)


def cluster_dies(drill: Drill) -> None:
    with on_nodes(drill, 2):
        driver = drill.start()
        drill.wait(driver, 0.5)
        drill.kills += drill.num_workers
    drill.finish(driver, to=None)
    drill.story[-1] = "lost its cluster"
    drill.mark()
    drill.finish(drill.start())


LOCAL: dict[str, tuple[str, Callable[[Drill], None]]] = {
    "driver_early": ("kill -9 the driver at 10 % of the calls", partial(driver_killed, shares=(0.1,))),
    "driver_middle": ("kill -9 the driver at 50 %", partial(driver_killed, shares=(0.5,))),
    "driver_late": ("kill -9 the driver at 95 %", partial(driver_killed, shares=(0.95,))),
    "driver_often": (
        "kill -9 the driver at 20, 40, 60 and 80 %",
        partial(driver_killed, shares=(0.2, 0.4, 0.6, 0.8)),
    ),
    "sigint": ("Ctrl-C", partial(driver_interrupted, number=signal.SIGINT)),
    "sigterm": ("SIGTERM", partial(driver_interrupted, number=signal.SIGTERM)),
    "frozen": ("the driver asleep for 5 s (SIGSTOP), a second one started", driver_frozen),
    "second": ("a second driver on the same run", second_driver),
    "clock": ("the clock jumps by two hours, to and fro, every second", clock_jumps),
    "429": ("a third of the requests get 429 twice", partial(some_calls, trouble="429")),
    "500": ("... 500 twice", partial(some_calls, trouble="500")),
    "garbage": ("... HTML with status 200 twice", partial(some_calls, trouble="garbage")),
    "truncated": ("... truncated JSON twice", partial(some_calls, trouble="truncated")),
    "half": ("... half a body, then a hang-up, twice", partial(some_calls, trouble="half")),
    "never": (
        "one request in twenty gets no answer at all, twice",
        partial(some_calls, trouble="never", one_in=20),
    ),
    "all_500": ("500 to every call from 40 % on", partial(every_call, trouble="500")),
    "all_garbage": ("garbage to every call from 40 % on", partial(every_call, trouble="garbage")),
    "away_minute": ("the server away for a minute at 40 %", partial(server_away, seconds=60)),
    "away_long": ("the server away for longer than `max_down_s`", server_away_too_long),
    "disk_journal": (
        "files of at most 20 kB: the journal stops growing",
        partial(disk_full, file_bytes=20_000, what="written to the journal"),
    ),
    "disk_publish": (
        "files of at most 120 kB: the published file does not fit",
        partial(disk_full, file_bytes=120_000, what="nothing more can be written"),
    ),
    "tmpfs": ("a disk of 200 kB is full (tmpfs, needs root)", tmpfs_full),
    "shard_flip": ("one bit of a committed shard flipped, driver killed", partial(shard_damaged, how="flip")),
    "shard_cut": ("a committed shard cut in half, driver killed", partial(shard_damaged, how="cut")),
    "shard_missing": ("a committed shard removed, driver killed", partial(shard_damaged, how="missing")),
    "entry_cut": ("a manifest entry cut in half, driver killed", entry_damaged),
    "journal_torn": ("half a line at the end of the journal, driver killed", journal_torn),
    "journal_flip": ("one bit of the journal flipped, driver killed", journal_damaged),
    "lock_left": ("the lock of a dead driver on another host", lock_left),
}
RAY: dict[str, tuple[str, Callable[[Drill], None]]] = {
    "worker": ("Ray, 2 nodes: kill -9 a worker at 40 %", partial(worker_killed, shares=(0.4,))),
    "workers": (
        "Ray, 2 nodes: kill -9 a worker at 30 and at 60 %",
        partial(worker_killed, shares=(0.3, 0.6)),
    ),
    "node": ("Ray: one of 2 nodes dies at 40 %", partial(node_killed, comes_back=False)),
    "node_back": ("Ray: one of 2 nodes dies, another comes", partial(node_killed, comes_back=True)),
    "node_late": ("Ray: 2 workers wanted, the second node comes late", node_comes_late),
    "ray_driver": ("Ray, 2 nodes: kill -9 the driver at 50 %", ray_driver_killed),
    "ray_second": ("Ray: a second driver on the same run", ray_second_driver),
    "cluster": ("Ray: the whole cluster dies, finished without it", cluster_dies),
}
BEST_EFFORT: dict[str, tuple[str, Callable[[Drill], None]]] = {
    "any_driver": (
        "never the same reply twice; the driver killed at 30 and 70 %",
        partial(driver_killed, shares=(0.3, 0.7)),
    ),
    "any_worker": ("never the same reply twice; Ray, a worker killed", partial(worker_killed, shares=(0.4,))),
}
FAULTS = LOCAL | RAY | BEST_EFFORT


def disturbed(name: str, server: StubServer, reference: Undisturbed, nodes: Nodes | None = None) -> Result:
    """One run with one fault, brought to its end; on a cluster that is there already, if one is given."""
    with tempfile.TemporaryDirectory() as folder:
        exact = name not in BEST_EFFORT
        server.tell("reset", exact)
        drill = Drill(reference=reference, folder=Path(folder), server=server, nodes=nodes, exact=exact)
        FAULTS[name][1](drill)
        return drill.result()


def main() -> None:
    """Print a row as each run ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--skip-ray", action="store_true", help="only faults that need no cluster")
    which.add_argument("--on-ray", action="store_true", help="only those, but on a cluster of two nodes")
    args = parser.parse_args()
    is_local = args.skip_ray or args.on_ray
    chosen = [name for name in args.only if not is_local or name in LOCAL or name == "any_driver"]
    if os.geteuid() != 0 and "tmpfs" in chosen:
        chosen.remove("tmpfs")
    print(
        "| fault | the driver | same bytes | sums agree | calls | sent again | at most | though journaled | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    failed = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, reference = stack.enter_context(prepared(folder))
        nodes = stack.enter_context(Nodes(2)) if args.on_ray else None
        for name in chosen:
            start = time.monotonic()
            try:
                row = disturbed(name, server, reference, nodes)
            except Exception as error:  # the other runs are worth having
                failed += 1
                print(f"| {FAULTS[name][0]} | FAILED: {' '.join(str(error).split())} |", flush=True)
                continue
            failed += not row.holds
            yes = {True: "yes", False: "NO"}
            print(
                f"| {FAULTS[name][0]} | {row.story} | {yes[row.is_same]} | {yes[row.sums_agree]} | {row.num_calls} | "
                f"{row.resent} | {row.bound} | {row.asked_again} | {time.monotonic() - start:.0f} |",
                flush=True,
            )
    print(f"\n{len(chosen)} runs, {failed} failed; {reference.num_calls} calls in the undisturbed one")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
