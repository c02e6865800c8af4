"""One bad row among many, ours and the peers: how many rows come out, and what is said of the others.

    python benchmarks/poisoned.py [--rows 500] [--peer datatrove=/path/to/venv/bin/python ...]

A stub server answers after 10 ms; like vLLM it refuses an image that it cannot decode. First, to what is asked about
row 77 it gives 400, 500 or a body that is no JSON, however often it is asked. Then it is well, every row has a picture,
and that of row 77 is noise, is cut off, or is not there. Peers are those of `saturation_peers.py`, as their
documentation has them; a row counts if it has an answer. Ours is the pass `journeys`, one question and one answer a
sample, and with pictures the whole pipeline from a list of files.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import re
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import yaml
from PIL import Image
from saturation import SeedPass
from stub_server import REPLY, Service, StubServer, http

from infinity_mm.config import load_config
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.run import run_synthesis
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.synth.styles import StylesConfig

REPLIES = ("400", "500", "garbage")
IMAGES = ("noise", "cut off", "missing")
POISONED_ROW = 77
POISON = (b"What color is 77?", b"What color is s000077?")
IN_FLIGHT = 50
GIVE_UP_S = 90


class Poisoned(Service):
    """Answers everybody but one; what it cannot decode it refuses."""

    trouble = ""

    def disturb(self, trouble: str) -> None:
        """400, 500 or garbage; otherwise what is wrong lies in the images."""
        self.trouble = trouble

    def answer(self, body: bytes) -> bytes | None:
        """A reply, or the trouble."""
        if self.trouble in IMAGES:
            try:
                see(body)
            except Exception as error:  # whatever a decoder says
                return _refusal(str(error))
            return super().answer(body)
        if not any(mark in body for mark in POISON):
            return super().answer(body)
        if self.trouble == "garbage":
            return http(b"<html>not what was asked for</html>")
        return _refusal("cannot be read", int(self.trouble))


def _refusal(why: str, status: int = 400) -> bytes:
    return http(json.dumps({"error": {"message": why, "type": "invalid"}}).encode(), status)


def see(body: bytes) -> None:
    """Decode every image of a request; raises if one cannot be."""
    if not body:
        return  # a client that asks whether the server is up
    for message in json.loads(body)["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(";base64,")
                if not head.startswith("data:"):
                    raise ValueError(f"cannot fetch {head}")
                Image.open(io.BytesIO(base64.b64decode(data))).load()


def write_images(folder: Path, number: int, trouble: str) -> None:
    """Pictures of noise, no two alike, and the one that is wrong."""
    folder.mkdir()
    for i in range(number):
        Image.frombytes("RGB", (48, 48), random.Random(i).randbytes(3 * 48 * 48)).save(folder / f"{i}.png")
    bad = folder / f"{POISONED_ROW}.png"
    whole = bad.read_bytes()
    match trouble:
        case "noise":
            bad.write_bytes(random.Random(0).randbytes(len(whole)))
        case "cut off":
            bad.write_bytes(whole[: len(whole) // 2])
        case "missing":
            bad.unlink()


def ours_with_images(url: str, images: Path, number: int) -> str:
    """Rows out, and those dropped or set aside by reason."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [json.dumps(str(images / f"{i}.png")) for i in range(number)]
        Path(folder, "images.txt").write_text("\n".join(paths))
        settings = {
            "name": "poisoned",
            "run_dir": f"{folder}/run",
            "read": {"sources": [{"kind": "files", "path": f"{folder}/images.txt"}]},
            "tagger": {"model": "none"},
            "plan": {"tree": "any_picture", "seeds": "tree", "questions_per_image": 1},
            "engines": {
                "teacher": {
                    "kind": "openai",
                    "base_url": url,
                    "model": "stub",
                    "revision": "1",
                    "max_in_flight": IN_FLIGHT,
                }
            },
            "stages": ["ask", "styles", "answer", "merge"],
            "styles": {"names": ["short"], "suit_the_type": False},
        }
        Path(folder, "run.yaml").write_text(yaml.safe_dump(settings))
        config = load_config(SynthConfig, f"{folder}/run.yaml")
        rows = run_synthesis(config).conversations
        run = Run(config.run_dir)
        out = [*run.dropped("read"), *run.quarantined("read"), *run.quarantined("journeys")]
        return _row(rows, [f"{Path(row.get('key', row['id'])).name}: {row['reason']}" for row in out])


def _row(rows: int, aside: Sequence[str]) -> str:
    return f"{rows}; {', '.join(aside) or 'nothing set aside'}"


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
        return _row(rows, [f"{row['id']}: {row['reason']}" for row in run.quarantined("journeys")])


def peer(python: str, name: str, url: str, number: int, images: Path | None) -> str:
    """Rows out, or how it ended."""
    script = Path(__file__).with_name("saturation_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(script), name, url, str(number), str(IN_FLIGHT)]
        command += [] if images is None else [str(images)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=GIVE_UP_S)
        except subprocess.TimeoutExpired:
            return f"no end within {GIVE_UP_S} s"
        written = sum(_answers(file) for file in Path(folder).rglob("*.jsonl*"))
    if done.returncode == 0:
        return str(number)
    counted = re.search(rf"{name}: (\d+) rows of", done.stderr)
    last = done.stderr.strip().splitlines()[-1][:100]
    return counted[1] if counted else f"aborts, {written} written ({last})"


def _answers(file: Path) -> int:
    """Lines with a reply, also of a compressed file that was never closed."""
    data = file.read_bytes()
    if file.suffix == ".gz":
        data = zlib.decompressobj(wbits=31).decompress(data)
    return sum(REPLY[:20].encode() in line for line in data.split(b"\n"))


def measure(name: str, python: str, server: StubServer, number: int, trouble: str) -> str:
    """One cell."""
    server.tell("disturb", trouble)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images") if trouble in IMAGES else None
        if images is not None:
            write_images(images, number, trouble)
        if python:
            return peer(python, name, server.url, number, images)
        return ours(server.url, number) if images is None else ours_with_images(server.url, images, number)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument(
        "--peer", action="append", default=[], help="NAME=PYTHON of an environment that has it"
    )
    kinds = [*REPLIES, *IMAGES]
    parser.add_argument("--trouble", nargs="+", choices=kinds, default=kinds)
    args = parser.parse_args()
    print(f"Rows with an answer, of {args.rows}; one has a bad reply or a bad image\n")
    print(f"| | {' | '.join(args.trouble)} |\n|---|{'---|' * len(args.trouble)}", flush=True)
    with StubServer(Poisoned(delay_s=0.01)) as server:
        for named in ["ours", *args.peer]:
            name, _, python = named.partition("=")
            cells = [measure(name, python, server, args.rows, trouble) for trouble in args.trouble]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
