# pyright: reportMissingImports=false, reportUnusedExpression=false
"""The peers of `saturation.py`, each run by the Python of its own environment; prints the seconds it took.

    PYTHON saturation_peers.py datatrove|datatrove-checkpoints|curator|distilabel URL REQUESTS IN_FLIGHT

Each is given what its own documentation gives for "ask this server so many prompts", with as many calls at once. The
time is that of the call that runs the pipeline: imports are left out, what it starts is not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = (
    "Ask one question about the image, of the type fine_single/attribute/color. Example: What color is {i}? "
)
PAD = "The question must be answerable from the image alone, short, and unlike the example. " * 12
"""So that a body is about as long as ours."""


def prompts(number: int) -> list[str]:
    return [PROMPT.format(i=i) + PAD for i in range(number)]


def datatrove(url: str, number: int, in_flight: int, *, checkpoints: bool = False) -> Callable[[], int]:
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    async def rollout(document: Any, generate: Any) -> Any:
        message = {"role": "user", "content": document.text}
        return await generate({"messages": [message], "max_tokens": 96, "temperature": 0.7})

    kept: dict[str, Any] = {}
    if checkpoints:
        kept = {"checkpoints_local_dir": "checkpoints", "records_per_chunk": 500}
    config = InferenceConfig(
        server_type="endpoint",
        endpoint_url=url.removesuffix("/v1"),
        model_name_or_path="stub",
        max_concurrent_generations=in_flight,
        max_concurrent_documents=in_flight,
        metric_interval=3600,
    )
    name = "${rank}_chunk_${chunk_index}.jsonl" if checkpoints else "${rank}.jsonl"
    documents = [Document(text=text, id=str(i)) for i, text in enumerate(prompts(number))]
    runner = InferenceRunner(
        rollout_fn=rollout, config=config, output_writer=JsonlWriter("out", output_filename=name), **kept
    )
    executor = LocalPipelineExecutor(pipeline=[documents, runner], logging_dir="logs", tasks=1)

    def run() -> int:
        executor.run()
        return _lines("out")

    return run


def curator(url: str, number: int, in_flight: int) -> Callable[[], int]:
    os.environ |= {
        "CURATOR_CACHE_DIR": str(Path("cache").absolute()),
        "TELEMETRY_ENABLED": "false",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "OPENAI_API_KEY": "none",
        "HF_HUB_OFFLINE": "1",
    }
    import tiktoken

    class Words:
        """Its tokenizer's vocabulary is a download; token counts are not what is measured."""

        def encode(self, text: str, **_: object) -> list[str]:
            return text.split()

    setattr(tiktoken, "get_encoding", lambda name: Words())  # noqa: B010
    setattr(tiktoken, "encoding_for_model", lambda name: Words())  # noqa: B010
    from bespokelabs import curator as package

    llm = package.LLM(
        model_name="gpt-4o-mini",
        backend="openai",
        backend_params={
            "base_url": url,
            "max_concurrent_requests": in_flight,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
        },
    )

    def run() -> int:
        return len(llm(prompts(number)).dataset)

    return run


def distilabel(url: str, number: int, in_flight: int) -> Callable[[], int]:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="saturation", cache_dir="cache") as pipeline:
        load = LoadDataFromDicts(
            data=[{"instruction": text} for text in prompts(number)], batch_size=in_flight
        )
        ask = TextGeneration(
            llm=OpenAILLM(model="stub", base_url=url, api_key="none"),  # type: ignore[arg-type]
            input_batch_size=in_flight,
        )
        load >> ask

    def run() -> int:
        said = pipeline.run(use_cache=False)["default"]["train"]["generation"]
        return sum(text is not None for text in said)

    return run


def _lines(folder: str) -> int:
    import gzip

    return sum(
        len((gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes()).splitlines())
        for f in Path(folder).rglob("*.jsonl*")
    )


PEERS: dict[str, Callable[[str, int, int], Callable[[], int]]] = {
    "datatrove": datatrove,
    "datatrove-checkpoints": lambda *args: datatrove(*args, checkpoints=True),
    "curator": curator,
    "distilabel": distilabel,
}


def main() -> None:
    """Run one peer and print its seconds."""
    name, url, number, in_flight = sys.argv[1:]
    run = PEERS[name](url, int(number), int(in_flight))
    start = time.perf_counter()
    rows = run()
    seconds = time.perf_counter() - start
    if rows != int(number):
        raise SystemExit(f"{name}: {rows} rows of {number}")
    print(seconds)


if __name__ == "__main__":
    main()
