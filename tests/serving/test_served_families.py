"""vLLM's own classes serve what the trainer made of checkpoints of stock families; run by `make test-serving`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(sys.prefix) / "package"
VISION = Path(sys.prefix) / "torchvision"
"""torchvision, which the families' processors import. Not in the environment itself: see the Makefile."""
pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="needs vLLM in its environment: make test-serving"
)

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-3
DIFFER = {
    (
        "qwen3_vl",
        "one image",
    ): "vLLM 0.32 embeds positions of small pictures otherwise, untrained checkpoints too",
    ("qwen3_vl", "two images"): "the same",
    ("llava_onevision", "two images"): "vLLM 0.32 cuts each of several images, transformers shows each whole",
}
"""Where vLLM's own class does not say what transformers says, whatever the checkpoint: there it only has to answer."""


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "llava_onevision", "internvl"]
)
def test_a_trained_checkpoint_says_in_vllm_what_it_says_in_transformers(name: str, tmp_path: Path) -> None:
    # Every process of vLLM must know how to import a torchvision that was built for CUDA.
    (tmp_path / "sitecustomize.py").write_text("import infinity_mm\n")
    places = [tmp_path, PACKAGE, VISION, ROOT / "tests" / "unit" / "families"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("served_family.py")), name, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    chats = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"chat"')]
    assert [chat["chat"] for chat in chats] == ["no image", "one image", "two images"]
    for chat in chats:
        if (name, chat["chat"]) in DIFFER:
            assert chat["ids"][1], chat
            continue
        assert chat["prompt_tokens"][0] == chat["prompt_tokens"][1], chat
        assert chat["ids"][0] == chat["ids"][1], chat
        assert chat["logprobs"][1] == pytest.approx(chat["logprobs"][0], abs=TOLERANCE), chat
