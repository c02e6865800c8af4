# pyright: reportMissingImports=false, reportUnusedExpression=false
"""The peers of `saturation.py` and `poisoned.py`, each run by the Python of its own environment; prints its seconds.

    PYTHON saturation_peers.py NAME URL REQUESTS IN_FLIGHT [IMAGES]

NAME is datatrove, datatrove-checkpoints, datatrove-skipping, curator, distilabel or ray-data. Each is given what its
own documentation gives for "ask this server so many prompts", with as many calls at once. The time is that of the call
that runs the pipeline: imports are left out, what it starts is not.

With a folder IMAGES, request i is about `IMAGES/i.png`. What each takes: curator a path, sent as the file's bytes, or
as an address where there is no such file; distilabel base64 in a column, so that reading files is the caller's;
datatrove whatever the caller's own function, called for each row, puts into the request: here it reads the file.
"""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PROMPT = (
    "Ask one question about the image, of the type fine_single/attribute/color. Example: What color is {i}? "
)
PAD = "The question must be answerable from the image alone, short, and unlike the example. " * 12
"""So that a body is about as long as ours."""


def prompts(number: int) -> list[str]:
    return [PROMPT.format(i=i) + PAD for i in range(number)]


def encoded(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def datatrove(
    url: str,
    number: int,
    in_flight: int,
    images: str | None,
    *,
    checkpoints: bool = False,
    skip: bool = False,
) -> Callable[[], int]:
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    async def rollout(document: Any, generate: Any) -> Any:
        content = document.text
        if images is not None:
            address = {"url": f"data:image/png;base64,{encoded(f'{images}/{document.id}.png')}"}
            content = [{"type": "image_url", "image_url": address}, {"type": "text", "text": document.text}]
        message = {"role": "user", "content": content}
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
        rollout_fn=rollout,
        config=config,
        output_writer=JsonlWriter("out", output_filename=name),
        skip_bad_requests=skip,
        **kept,
    )
    executor = LocalPipelineExecutor(pipeline=[documents, runner], logging_dir="logs", tasks=1)

    def run() -> int:
        executor.run()
        return _lines("out")

    return run


def curator(url: str, number: int, in_flight: int, images: str | None) -> Callable[[], int]:
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

    class WithImage(package.LLM):
        def prompt(self, input: dict[str, str]) -> Any:
            return input["text"], package.types.Image(url=input["image"])

        def parse(self, input: dict[str, str], response: str) -> dict[str, str]:
            return {"said": response}

    llm = (package.LLM if images is None else WithImage)(
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
        rows = prompts(number)
        if images is not None:
            rows = [{"text": text, "image": f"{images}/{i}.png"} for i, text in enumerate(rows)]
        return len(llm(rows).dataset)

    return run


def distilabel(url: str, number: int, in_flight: int, images: str | None) -> Callable[[], int]:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration, TextGenerationWithImage

    rows = [{"instruction": text} for text in prompts(number)]
    model = OpenAILLM(model="stub", base_url=url, api_key="none")  # type: ignore[arg-type]
    with Pipeline(name="saturation", cache_dir="cache") as pipeline:
        if images is None:
            ask = TextGeneration(llm=model, input_batch_size=in_flight)
        else:
            rows = [row | {"image": encoded(f"{images}/{i}.png")} for i, row in enumerate(rows)]
            ask = TextGenerationWithImage(llm=model, image_type="base64", input_batch_size=in_flight)
        LoadDataFromDicts(data=rows, batch_size=in_flight) >> ask

    def run() -> int:
        said = pipeline.run(use_cache=False)["default"]["train"]["generation"]
        return sum(text is not None for text in said)

    return run


def ray_data(url: str, number: int, in_flight: int, images: str | None) -> Callable[[], int]:
    """Texts only. The calls of a batch follow one another; only several batches at once would overlap."""
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    assert images is None
    ray.init(address="local", include_dashboard=False, log_to_driver=False)

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        return {"payload": {"model": "stub", "messages": [{"role": "user", "content": row["text"]}]}}

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return {"said": row["http_response"]["choices"][0]["message"]["content"]}

    config = HttpRequestProcessorConfig(url=f"{url}/chat/completions", batch_size=in_flight, concurrency=1)
    processor = build_processor(config, preprocess=ask, postprocess=read)

    def run() -> int:
        asked = ray.data.from_items([{"text": text} for text in prompts(number)])
        return len(processor(asked).take_all())

    return run


def _lines(folder: str) -> int:
    import gzip

    return sum(
        len((gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes()).splitlines())
        for f in Path(folder).rglob("*.jsonl*")
    )


PEERS: dict[str, Callable[[str, int, int, str | None], Callable[[], int]]] = {
    "datatrove": datatrove,
    "datatrove-checkpoints": partial(datatrove, checkpoints=True),
    "datatrove-skipping": partial(datatrove, skip=True),
    "curator": curator,
    "distilabel": distilabel,
    "ray-data": ray_data,
}


def main() -> None:
    """Run one peer and print its seconds."""
    if len(sys.argv) == 1:
        print("skipped: saturation.py and poisoned.py start it")
        return
    name, url, number, in_flight, *images = sys.argv[1:]
    run = PEERS[name](url, int(number), int(in_flight), *(images or [None]))
    start = time.perf_counter()
    rows = run()
    seconds = time.perf_counter() - start
    if rows != int(number):
        raise SystemExit(f"{name}: {rows} rows of {number}")
    print(seconds)


if __name__ == "__main__":
    main()
