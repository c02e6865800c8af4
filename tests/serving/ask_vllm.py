"""Asks the engine kind `vllm` from a process of its own, as a worker does: requests in, answers out, as JSON.

python ask_vllm.py MODEL    with one `{"files": [base64], "question": ..., "choices": [...]}` per line on stdin
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from infinity_mm.engines.base import Engine, Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.engines.guard import Guarded
from infinity_mm.engines.vllm import VllmSpec
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn


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


def request(files: Files, asked: dict[str, Any]) -> Request | Scoring:
    images = tuple(files.add(base64.b64decode(data)) for data in asked["files"])
    content = (*(ImageSlot(i) for i in range(len(images))), Text(asked["question"]))
    turn = Turn("user", content)
    if "answer" in asked:
        return Scoring(turns=(turn, Turn("assistant", (Text(asked["answer"]),))), images=images)
    return Request(
        turns=(turn,),
        images=images,
        max_new_tokens=24,
        choices=tuple(asked.get("choices", ())),
        temperature=asked.get("temperature", 0.0),
        seed=asked.get("seed", 0),
        schema=asked.get("schema"),
    )


async def answers_of(
    engine: Engine, batch: Sequence[Request | Scoring]
) -> Sequence[Reply | Likelihood | Failure]:
    requests = [asked for asked in batch if isinstance(asked, Request)]
    scorings = [asked for asked in batch if isinstance(asked, Scoring)]
    replies, likelihoods = await asyncio.gather(engine.generate(requests), engine.score(scorings))
    return [*replies, *likelihoods]


async def main(model: str) -> None:
    files = Files()
    batches = [[request(files, asked) for asked in json.loads(line)] for line in sys.stdin]
    spec = VllmSpec(model=model, max_images=2, engine_args={"max_model_len": 2048})
    async with spec.open(files) as engine:
        answers = [await answers_of(engine, batch) for batch in batches]
        assert isinstance(engine, Guarded)
        said = [[asdict(answer) for answer in batch] for batch in answers]
        print(json.dumps({"answers": said, "restarts": engine.num_restarts, "engine": engine.fingerprint}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
