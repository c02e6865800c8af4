"""One bad request among many, ours and the peers: how many rows come out, and what is said of the others.

    python benchmarks/poisoned.py [--rows 500] [--peer datatrove=/path/to/venv/bin/python ...]

A stub server answers after 10 ms; to what is asked about row 77 it gives 400, 500 or a body that is no JSON, however
often it is asked. Peers are those of `saturation_peers.py`, as their documentation has them; a row counts if it has an
answer. Ours is a run's pass `journeys`, one question and one answer a sample.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import zlib
from pathlib import Path

from saturation import SeedPass
from stub_server import Service, StubServer, http

from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.synth.styles import StylesConfig

POISON = (b"What color is 77?", b"What color is s000077?")
IN_FLIGHT = 50
GIVE_UP_S = 90


class Poisoned(Service):
    """Answers everybody but one."""

    trouble = ""

    def disturb(self, trouble: str) -> None:
        """400, 500 or garbage."""
        self.trouble = trouble

    def answer(self, body: bytes) -> bytes | None:
        """A reply, or the trouble."""
        if not any(mark in body for mark in POISON):
            return super().answer(body)
        if self.trouble == "garbage":
            return http(b"<html>not what was asked for</html>")
        return http(b'{"error": {"message": "cannot be read", "type": "invalid"}}', int(self.trouble))


def ours(url: str, number: int) -> str:
    """Rows out, and those set aside by reason."""
    config = JourneyConfig(stages=("ask", "styles", "answer", "merge"), styles=StylesConfig(names=("short",)))
    teacher = OpenAISpec(
        base_url=url, model="stub", revision="1", max_in_flight=IN_FLIGHT, backoff_s=0.1, max_retries=3
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        run.start({}, seed=0)
        passes = [
            SeedPass(number=number, questions=1),
            JourneyPass(config=config, teacher=teacher, tree="default"),
        ]
        run_passes(passes, run, LocalExecutor())
        rows = sum(1 for _ in run.samples("journeys"))
        aside = [f"{row['id']}: {row['stage']}, {row['reason']}" for row in run.quarantined("journeys")]
    return f"{rows}; set aside: {', '.join(aside) or 'none'}"


def peer(python: str, name: str, url: str, number: int) -> str:
    """Rows out, or how it ended."""
    script = Path(__file__).with_name("saturation_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(script), name, url, str(number), str(IN_FLIGHT)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=GIVE_UP_S)
        except subprocess.TimeoutExpired:
            return f"no end within {GIVE_UP_S} s"
        written = sum(_lines(file) for file in Path(folder).rglob("*.jsonl*"))
    if done.returncode == 0:
        return str(number)
    counted = re.search(rf"{name}: (\d+) rows of", done.stderr)
    last = done.stderr.strip().splitlines()[-1][:100]
    return counted[1] if counted else f"aborts, {written} written ({last})"


def _lines(file: Path) -> int:
    """Also of a compressed file that was never closed."""
    data = file.read_bytes()
    if file.suffix == ".gz":
        data = zlib.decompressobj(wbits=31).decompress(data)
    return data.count(b"\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument(
        "--peer", action="append", default=[], help="NAME=PYTHON of an environment that has it"
    )
    parser.add_argument("--trouble", nargs="+", default=["400", "500", "garbage"])
    args = parser.parse_args()
    print(f"Rows with an answer, of {args.rows}; one request is answered badly\n")
    print(f"| | {' | '.join(args.trouble)} |\n|---|{'---|' * len(args.trouble)}", flush=True)
    with StubServer(Poisoned(delay_s=0.01)) as server:
        for named in ["ours", *args.peer]:
            name, _, python = named.partition("=")
            cells = []
            for trouble in args.trouble:
                server.tell("disturb", trouble)
                cells.append(
                    peer(python, name, server.url, args.rows) if python else ours(server.url, args.rows)
                )
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
