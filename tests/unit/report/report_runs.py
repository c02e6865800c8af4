"""A small whole run whose file names, questions and answers are as hostile as can be, with every fate in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infinity_mm.config import load_config
from infinity_mm.engines import spec
from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    Failure,
    ImageReader,
    Likelihood,
    Reply,
    Request,
    Scoring,
    no_likelihoods,
)
from infinity_mm.record import digest
from infinity_mm.runtime.run import Run
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis
from infinity_mm.taxonomy import tag_pass
from infinity_mm.taxonomy.tree import Tree

ROOT = Path(__file__).parents[3]
HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    '" onmouseover="document.title=1" x="',
    "' onfocus='document.title=1' autofocus x='",
    "javascript:document.title='owned'",
    "<img src=x onerror=document.title='owned'>",
    "safe\u202etxt.exe\u202c and \u2066more",
    "line\u2028and\u2029paragraph \x00\x1b[31m red",
    "<svg/onload=document.title='owned'> ]]> {{7*7}} ${7*7} &lt;b&gt; %3Cscript%3E",
)
"""What a model, a caption or a file name may say."""
HUGE = " ".join(str(number) for number in range(200_000))[:1_000_000]
TYPES = ("fine_single/attribute/color", "fine_single/attribute/size", "logic/existence/present")
"""As many as an image gets, so that near copies are asked the same."""


@dataclass
class Script:
    """A teacher whose words depend on the prompt and the picture's looks, so that near copies are told the same."""

    words: Sequence[str]
    fingerprint: str = "scripted@1"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(images_per_prompt=8, choice_logprobs=False, seeds=True, reproducible="exact")

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        return [self._say(request) for request in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        return no_likelihoods(scorings)

    def _say(self, request: Request) -> Reply | Failure:
        prompt = request.turns[-1].text
        asked = prompt.partition("Examples:")[0]  # which examples are shown depends on the image's id
        number = int(digest(asked, request.images[0].phash or "")[:12], 16)
        words = self.words[number % len(self.words)].replace("\n", " ")
        if prompt.startswith("Ask a question"):
            if number % 11 == 0:
                return Failure(reason="timeout", detail=f"no answer: {words}")
            return Reply(text=f"What is {words} {number % 3}?")
        if prompt.startswith("Can this"):
            return Reply(text="no" if number % 7 == 0 else "yes")
        if prompt.startswith("Judge"):
            if "mended" in prompt:
                return Reply(text="9" if number % 3 else "5")
            return Reply(text=("9", "5", "5", "2", "9", "ten or so")[number % 6])
        if prompt.startswith("Correct"):
            return Reply(text=prompt.partition("\nA: ")[2].replace("It says", "It says mended"))
        if number % 13 == 0:
            return Reply(text=f"It says {self.words[0]} {HUGE}", prompt_tokens=100, completion_tokens=9)
        return Reply(text=f"It says {words}", prompt_tokens=100, completion_tokens=9)


@dataclass(frozen=True, kw_only=True)
class ScriptSpec:
    """Opens a `Script` that says hostile words, or plain ones."""

    model: str = "hostile"

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        plain = [f"word{number}" for number in range(len(HOSTILE))]
        yield Script(HOSTILE if self.model == "hostile" else plain)


class FakeTagger:
    """Sees the same in every picture."""

    fingerprint = "fake"

    def __init__(self, config: object) -> None:
        pass

    def scores(self, pictures: Sequence[object]) -> list[dict[str, float]]:
        return [{"circle": 0.9, "red": 0.8, "square": 0.7} for _ in pictures]


def make_images(folder: Path, names: Sequence[str]) -> None:
    """One picture per name, the second a copy of the first, the third nearly the same; and a broken file."""
    folder.mkdir()
    for number, name in enumerate(names):
        seed = 0 if number < 3 else number
        noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)
        if number == 2:
            picture.putpixel((0, 0), (1, 2, 3))
        picture.save(folder / name, format="PNG")
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")


def hostile_names() -> list[str]:
    """File names out of the hostile words, as far as a disk takes them."""
    return [f"{n}{text.replace('/', '|').replace(chr(0), '')[:80]}.png" for n, text in enumerate(HOSTILE)]


def make_run(home: Path, monkeypatch: pytest.MonkeyPatch, *, model: str = "hostile") -> Run:
    """Images in `home/images`, the run in `home/run`."""
    monkeypatch.setattr(tag_pass, "ClipTagger", FakeTagger)
    monkeypatch.setitem(spec.KINDS, "scripted", ScriptSpec)
    names = hostile_names() if model == "hostile" else [f"{n}.png" for n in range(len(HOSTILE))]
    make_images(home / "images", names)
    source = {"kind": "folder", "path": str(home / "images"), "name": "shots", "licence": HOSTILE[0]}
    if model != "hostile":
        source["licence"] = "CC0-1.0"
    shares = {path: float(path in TYPES) for path in Tree.load("windtunnel").leaves}
    overrides = [
        f"run_dir={home / 'run'}",
        f"engines={{teacher: {{kind: scripted, model: {model}}}}}",
        f"read.sources=[{json.dumps(source)}]",
        "plan.questions_per_image=3",
        f"plan.shares={json.dumps(shares)}",
        "images_per_shard=3",
        "policy={keep_at: 8, rewrite_at: 4}",
    ]
    config = load_config(SynthConfig, ROOT / "configs" / "synth" / "tiny.yaml", overrides)
    run_synthesis(config)
    return Run(str(home / "run"))


class Skeleton(HTMLParser):
    """Tags and attributes in order, without text; what a browser would build elements from."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.blocks: dict[str, str] = {}
        self._block = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))
        self._block = dict(attrs).get("id") or "" if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._block = ""

    def handle_data(self, data: str) -> None:
        if self._block:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.blocks["data"])

    def names(self) -> set[tuple[str, str]]:
        """(tag, attribute) pairs."""
        return {(tag, name) for tag, attrs in self.tags for name, _ in attrs}
