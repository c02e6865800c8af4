"""The engine kind `vllm` says what transformers says, and outlives an image that kills vLLM's core."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ask_vllm import Files, request
from PIL import Image
from reference import CASES, Reference

from infinity_mm.engines.base import Failure, Likelihood, Scoring
from infinity_mm.engines.model_files import SHIPPED
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.serving.server import serve_environment

PACKAGE = Path(sys.prefix) / "package"
pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="needs vLLM in its environment: make test-serving"
)

TEACHER = SHIPPED["nano-teacher"]
SCRIPT = Path(__file__).parent / "ask_vllm.py"

POISON = '''
import os
from infinity_mm.model import modeling

def register():
    """What vllm#55546 is about, made small: the model's code ends the process over one picture, an all-black one."""
    model = modeling.InfinityMMModel
    if hasattr(model, "harmless_features"):
        return
    model.harmless_features = model.get_image_features

    def features(self, pixel_values, *args, **kwargs):
        for values in pixel_values:
            if values.numel() and float(values.max() - values.min()) == 0:
                os._exit(9)
        return self.harmless_features(pixel_values, *args, **kwargs)

    model.get_image_features = features
'''


def ask(batches: list[list[dict[str, Any]]], *more_path: Path) -> dict[str, Any]:
    environment = {**serve_environment(), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*more_path, PACKAGE)))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(TEACHER)],
        input="".join(json.dumps(batch) + "\n" for batch in batches),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (said,) = (line for line in done.stdout.splitlines() if line.startswith('{"answers"'))  # among vLLM's own
    return json.loads(said)


def asked(name: str, **more: Any) -> dict[str, Any]:
    case = CASES[name]
    return {
        "files": [base64.b64encode(data).decode() for data in case.files()],
        "question": case.question,
        **more,
    }


def likelihoods(answer: str) -> list[float]:
    """Of the answer to every case, by the engine of transformers."""
    files = Files()
    scorings = [request(files, asked(name, answer=answer)) for name in CASES]

    async def go() -> list[Likelihood | Failure]:
        async with TransformersSpec(model=str(TEACHER)).open(files) as engine:
            return await engine.score([each for each in scorings if isinstance(each, Scoring)])

    return [each.mean_logprob if isinstance(each, Likelihood) else math.nan for each in asyncio.run(go())]


def black() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def test_greedy_replies_and_probabilities_of_choices_are_those_of_transformers() -> None:
    reference = Reference(TEACHER)
    tokenizer = reference.processor.tokenizer
    choices = ("red", "green", "blue")
    first = [tokenizer(choice, add_special_tokens=False).input_ids[0] for choice in choices]
    long = {"files": asked("one unsliced")["files"], "question": "long " * 180}
    batches = [
        [asked(name) for name in CASES],
        [asked(name, choices=choices) for name in CASES],
        [asked("one sliced", temperature=1.0, seed=seed) for seed in (1, 1, 2, 3, 4)],
        [long],
        [long, asked("one sliced", question="<|image|>")],
        [asked(name, answer="a red circle") for name in CASES],
        [asked("one sliced", schema='{"enum":[true,false]}')],
    ]
    said = ask(batches)
    greedy, chosen, sampled, _, (again, forged), scored, (forced,) = said["answers"]
    for (name, case), reply, choice in zip(CASES.items(), greedy, chosen, strict=True):
        expected = reference.say(case)
        assert reply["prompt_tokens"] == expected.prompt_tokens, name
        assert reply["text"] == reference.text(expected.ids), name
        scores = [expected.likely[0][token] for token in first]
        total = math.log(sum(map(math.exp, scores)))
        assert choice["choice_logprobs"] == pytest.approx([s - total for s in scores], abs=1e-3), name
        assert choice["text"] == choices[scores.index(max(scores))], name
    assert [each["mean_logprob"] for each in scored] == pytest.approx(likelihoods("a red circle"), abs=1e-3)
    assert forced["text"] in ("true", "false")
    assert sampled[0] == sampled[1]
    assert again["cached_tokens"] >= 512, "four blocks of 128 were in the cache"
    assert forged["reason"] == "special_token"
    assert said["restarts"] == 0
    assert said["engine"].startswith("vllm: ")


def test_an_image_that_kills_the_core_is_found_and_the_others_are_answered(tmp_path: Path) -> None:
    (tmp_path / "poison_plugin.py").write_text(POISON)
    info = tmp_path / "poison-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: poison\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\npoison = poison_plugin:register\n")
    killer = {"files": [base64.b64encode(black()).decode()], "question": "What is it?"}
    said = ask([[asked("one sliced"), killer], [killer, asked("no image")]], tmp_path)
    (innocent, guilty), (guilty_again, text_only) = said["answers"]
    reference = Reference(TEACHER)
    assert innocent["text"] == reference.text(reference.say(CASES["one sliced"]).ids)
    assert (guilty["reason"], guilty["retryable"]) == ("killed_engine", False)
    assert guilty_again == guilty
    assert text_only["text"] == reference.text(reference.say(CASES["no image"]).ids)
    assert said["restarts"] == 2, "once for both together, once for the killer alone"
