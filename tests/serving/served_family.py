"""Train a tiny checkpoint of one stock family for two steps; then what transformers and vLLM say with it.

    python served_family.py FAMILY FOLDER     (one JSON line a chat)

In a process of its own: vLLM in process sets up threads and signal handlers that outlive it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

NUM_TOKENS = 16
CHATS = {"no image": (), "one image": ((24, 16),), "two images": ((24, 16), (16, 40))}


def trained(name: str, folder: Path) -> Path:
    """Two steps of the trainer on all parts."""
    from tiny_families import with_level, write_checkpoint, write_three  # pyright: ignore[reportMissingImports]

    from infinity_mm.config import build
    from infinity_mm.training.config import SftConfig
    from infinity_mm.training.sft import train

    start = write_checkpoint(name, folder / "start")
    if name == "llava_onevision":  # vLLM takes the names it was released with
        start = with_level(start, folder / "released")
    options = {"path": str(write_three(folder)), "image_folder": str(folder)}
    parts = {part: {"lr": 3e-3} for part in ("vision_tower", "connector", "language_model")}
    plain: dict[str, Any] = {
        "out_dir": str(folder / "run"),
        "model": {"path": str(start)},
        "data": [{"kind": "llava_json", "options": options}],
        "row_tokens": 256,
        "global_batch_rows": 1,
        "micro_batch_rows": 1,
        "steps": 2,
        "num_workers": 0,
        **parts,
    }
    result = train(build(SftConfig, plain), quiet=True)
    assert result.model_dir is not None
    return result.model_dir


def main(name: str, folder: Path) -> None:
    """Train, then ask both."""
    import torch
    from tiny_families import picture  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    model_dir = trained(name, folder)

    from transformers import AutoModelForImageTextToText, AutoProcessor
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    model: Any = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model_dir)
    engine = LLM(
        str(model_dir),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        limit_mm_per_prompt={"image": 2},
    )
    for chat, sizes in CHATS.items():
        images = [picture(seed, *size) for seed, size in enumerate(sizes)]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": "What is it?"}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = processor(text=prompt, images=images or None, return_tensors="pt")
        expected = model.generate(
            **inputs,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = expected.sequences[0, inputs.input_ids.shape[1] :].tolist()
        data = {"multi_modal_data": {"image": images}} if images else {}
        sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=0)
        (found,) = engine.generate([{"prompt": prompt, **data}], sampling, use_tqdm=False)
        said = found.outputs[0]
        line = {
            "chat": chat,
            "prompt_tokens": [inputs.input_ids.shape[1], len(found.prompt_token_ids)],
            "ids": [ids, list(said.token_ids)],
            "logprobs": [
                [float(torch.log_softmax(s[0], -1)[t]) for s, t in zip(expected.scores, ids)],
                [next(iter(of_token.values())).logprob for of_token in said.logprobs],
            ],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    main(sys.argv[1], Path(sys.argv[2]))
