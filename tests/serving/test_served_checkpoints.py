"""vLLM serves our checkpoints and says what transformers says; run by `make test-serving` in an environment of its own.

`<environment>/package` holds the installed package. It is put on the server's path where the plugin is tested, and
not where the checkpoint brings its code along.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from reference import CASES, Case, Reference, read_said

from infinity_mm.engines.base import EngineSpec, Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.engines.model_files import SHIPPED
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn
from infinity_mm.serving.server import ServeConfig, curl_example, running, serve_command, serve_environment

PACKAGE = Path(sys.prefix) / "package"
pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="needs vLLM in its environment: make test-serving"
)

ROOT = Path(__file__).parents[2]
TEACHER = SHIPPED["nano-teacher"]
SMALL = ("--max-model-len", "2048")
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Served:
    """A running server and the checkpoint it should agree with."""

    url: str
    name: str
    folder: Path

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)


def environment(*, with_package: bool) -> dict[str, str]:
    own = {k: v for k, v in serve_environment().items() if k != "PYTHONPATH"}
    own |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return own | ({"PYTHONPATH": str(PACKAGE)} if with_package else {})


def cli(*words: str) -> list[str]:
    return [sys.executable, str(PACKAGE / "bin" / "infinity-mm"), *words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(words: list[str], cwd: Path) -> str:
    done = subprocess.run(
        words, cwd=cwd, env=environment(with_package=True), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def served_by_command(work: Path) -> Iterator[Served]:
    """As a user does it: `infinity-mm serve`, and Ctrl-C at the end."""
    port, said = free_port(), work / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen(
            cli("serve", "nano-teacher", "--port", str(port), *SMALL),
            cwd=work,
            env=environment(with_package=True),
            stdout=file,
            stderr=file,
            # In the background of a script SIGINT is ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        while "Try it:" not in said.read_text():
            assert process.poll() is None, said.read_text()
            time.sleep(0.5)
        yield Served(f"http://127.0.0.1:{port}", "nano-teacher", TEACHER)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    assert process.returncode == 0
    assert said.read_text().endswith("the server has ended\n")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def served_by_plugin(folder: Path, work: Path) -> Iterator[Served]:
    config = ServeConfig(model=str(folder), port=free_port(), vllm_args=SMALL)
    with running(
        serve_command(config), config.url, environment=environment(with_package=True), timeout_s=600, cwd=work
    ):
        yield Served(config.url, config.model, folder)


@contextmanager
def served_with_code(folder: Path, work: Path) -> Iterator[Served]:
    exported = work / "exported"
    run(cli("export", str(folder), "--with-code", "--out", str(exported)), work)
    alone = environment(with_package=False) | {"HF_MODULES_CACHE": str(work / "modules")}
    found = subprocess.run([sys.executable, "-c", "import infinity_mm"], cwd=work, env=alone, check=False)
    assert found.returncode != 0, "the server would find the package"
    config = ServeConfig(model=str(exported), port=free_port(), vllm_args=("--trust-remote-code", *SMALL))
    with running(serve_command(config), config.url, environment=alone, timeout_s=600, cwd=work):
        yield Served(config.url, config.model, folder)


def text_only_checkpoint(work: Path) -> Path:
    """A model built and trained on drawn pictures, then trained on text alone, by the trainer itself."""
    turns = [("human", "{0} and {0}?"), ("gpt", "{0}{0}")]
    text = [
        {"id": str(i), "conversations": [{"from": who, "value": said.format(i)} for who, said in turns]}
        for i in range(32)
    ]
    (work / "text.json").write_text(json.dumps(text))
    tiny = ["train/sft.py", "--config", "configs/train/tiny.yaml"]
    built = [f"out_dir={work}/pictures", "steps=4", "model.build.connector=perceiver"]
    run([sys.executable, *tiny, *built], ROOT)
    options = {"path": str(work / "text.json"), "image_folder": str(work)}
    run(
        [
            sys.executable,
            *tiny,
            f"out_dir={work}/text",
            f"model={{path: {work}/pictures/model}}",
            f"data={json.dumps([{'kind': 'llava_json', 'options': options}])}",
            "steps=4",
        ],
        ROOT,
    )
    return work / "text" / "model"


def anyres_checkpoint(work: Path) -> Path:
    """A model that cuts images as LLaVA-OneVision does, trained for a few steps."""
    build = {"views": "anyres", "connector": "mlp", "merge": 1, "max_tiles": 4}
    run(
        [
            sys.executable,
            "train/sft.py",
            "--config",
            "configs/train/tiny.yaml",
            f"out_dir={work}/anyres",
            "row_tokens=1024",
            "steps=4",
            *(f"model.build.{key}={value}" for key, value in build.items()),
        ],
        ROOT,
    )
    return work / "anyres" / "model"


@pytest.fixture(scope="module", params=["command", "code", "text_only", "anyres"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    work = tmp_path_factory.mktemp(request.param)
    if request.param == "command":
        server = served_by_command(work)
    elif request.param == "code":
        server = served_with_code(TEACHER, work)
    else:
        checkpoint = text_only_checkpoint if request.param == "text_only" else anyres_checkpoint
        server = served_by_plugin(checkpoint(work), work)
    with server as running_server:
        yield running_server


def test_tokens_and_log_probabilities_are_those_of_transformers(served: Served) -> None:
    reference = Reference(served.folder)
    for name, case in CASES.items():
        expected, found = reference.say(case), read_said(served.ask(case.body(served.name)))
        assert found.prompt_tokens == expected.prompt_tokens, name
        assert found.ids == expected.ids, name
        assert found.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE), name
        assert sum(found.logprobs) == pytest.approx(sum(expected.logprobs), abs=TOLERANCE), name
        for theirs, ours in zip(found.likely, expected.likely, strict=True):
            assert theirs == pytest.approx({token: ours[token] for token in theirs}, abs=TOLERANCE), name


def test_a_batch_of_all_of_them_at_once_says_the_same(served: Served) -> None:
    alone = {name: read_said(served.ask(case.body(served.name))) for name, case in CASES.items()}
    names = [*CASES, *reversed(CASES), *CASES]
    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(lambda name: read_said(served.ask(CASES[name].body(served.name))), names))
    for name, said in zip(names, together, strict=True):
        assert said.ids == alone[name].ids, name
        assert said.logprobs == pytest.approx(alone[name].logprobs, abs=TOLERANCE), name


class Files:
    """Images by hash, as a run keeps them."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def add(self, data: bytes) -> ImageRef:
        sha256 = hashlib.sha256(data).hexdigest()
        self.data[sha256] = data
        return ImageRef(sha256=sha256, uri="memory", width=1, height=1)

    def read(self, image: ImageRef) -> bytes:
        return self.data[image.sha256]


def ask_through_the_engine(served: Served, requests: list[Request], files: Files) -> list[Reply | Failure]:
    async def go() -> list[Reply | Failure]:
        spec = OpenAISpec(
            base_url=f"{served.url}/v1", model=served.name, revision="test", choice_field="structured_outputs"
        )
        async with spec.open(files) as engine:
            return await engine.generate(requests)

    return asyncio.run(go())


def test_the_engine_of_synthesis_asks_the_server_about_pictures(served: Served) -> None:
    files = Files()
    pictures = tuple(files.add(data) for data in CASES["two of different grids"].files())
    content = (ImageSlot(0), ImageSlot(1), Text("What color is the first circle?"))
    choice = Request(
        turns=(Turn("user", content),), images=pictures, max_new_tokens=8, choices=("red", "green", "blue")
    )
    text = Request(turns=(Turn("user", (Text("Name a color."),)),), max_new_tokens=8)
    chosen, free = ask_through_the_engine(served, [choice, text], files)
    assert isinstance(chosen, Reply), chosen
    assert chosen.text in choice.choices
    reference = Reference(served.folder)
    expected = reference.say(Case(CASES["two of different grids"].sizes, "What color is the first circle?"))
    assert chosen.prompt_tokens == expected.prompt_tokens
    # A model that was hardly trained may say nothing but spaces, which the engine reports as a failure.
    assert isinstance(free, Reply) or free.reason == "empty_reply"
    said = free.text if isinstance(free, Reply) else ""
    assert said == reference.text(reference.say(CASES["no image"]).ids[:8])


def test_a_given_answer_is_as_likely_as_to_the_engine_that_computes_here(served: Served) -> None:
    files = Files()
    one = files.add(CASES["one sliced"].files()[0])
    two = tuple(files.add(data) for data in CASES["two of different grids"].files())
    scorings = [
        scoring((one,), "What color is the circle?", "red"),
        scoring((one,), "What color is the circle?", "It is left of a large blue square. Answer: red"),
        scoring((one,), "How many stars are there?", "3\nor 4, {who} can tell: 5 %"),
        scoring((), "Name a color.", "blue"),
    ]
    if "anyres" not in served.folder.parts:  # servers cut each of several images as if it were the only one
        scorings.append(scoring(two, "What color is the first circle?", "green"))

    async def score(spec: EngineSpec) -> list[Likelihood | Failure]:
        async with spec.open(files) as engine:
            return await engine.score(scorings)

    url = f"{served.url}/v1"
    there = asyncio.run(score(OpenAISpec(base_url=url, model=served.name, revision="test", likelihood=True)))
    here = asyncio.run(score(TransformersSpec(model=str(served.folder), dtype="float32")))
    for theirs, ours in zip(there, here, strict=True):
        assert isinstance(theirs, Likelihood), theirs
        assert isinstance(ours, Likelihood), ours
        assert theirs.mean_logprob == pytest.approx(ours.mean_logprob, abs=TOLERANCE)
        assert (theirs.num_tokens, theirs.prompt_tokens) == (ours.num_tokens, ours.prompt_tokens)


def scoring(pictures: tuple[ImageRef, ...], question: str, answer: str) -> Scoring:
    slots = tuple(ImageSlot(index) for index in range(len(pictures)))
    turns = (Turn("user", (*slots, Text(question))), Turn("assistant", (Text(answer),)))
    return Scoring(turns=turns, images=pictures)


def test_the_printed_curl_line_is_answered(served: Served, tmp_path: Path) -> None:
    line = curl_example(ServeConfig(model=served.name, port=int(served.url.rpartition(":")[2])))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)["choices"][0]
    assert reply["finish_reason"] in ("stop", "length")
    if served.folder == TEACHER:
        assert reply["message"]["content"] == "red"
