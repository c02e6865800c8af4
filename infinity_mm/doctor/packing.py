"""Does packing keep samples apart with this checkpoint, on this machine? The answer by measurement, per backend.

    checkpoint --three samples in one row--> change one sample --> largest change of the others' logits = leak

Each sample has an image and random text. The control is the same row with a plain causal mask, where later samples see
earlier ones: if its leak were 0, the test would be blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from infinity_mm.engines.model_files import model_folder
from infinity_mm.model.attention import BACKENDS, VARLEN, varlen_problem
from infinity_mm.model.load import load_model
from infinity_mm.model.processor import InfinityMMProcessor

_NUM_SAMPLES = 3
_TEXT_TOKENS = 12
CONTROL = "control: plain causal mask"
"""The row that must leak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingResult:
    """What one backend did."""

    backend: str
    """Attention backend, or the control."""
    verdict: Literal["isolated", "leaks", "not run"]
    """`isolated`: not one bit of another sample's logits moved."""
    leak: float | None = None
    """Largest absolute change of another sample's logit; None where it was not run."""
    change: float | None = None
    """Largest absolute change of the changed sample's own logits, for comparison."""
    reason: str = ""
    """Why it was not run."""


def check_packing(checkpoint: str, backends: Sequence[str] = BACKENDS) -> list[PackingResult]:
    """The control and every backend, in float32 on a CPU and in bfloat16 on a GPU.

    `checkpoint` is a folder, a shipped name or a Hub id.
    """
    disable_progress_bar()  # of transformers: loading takes a moment
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    loaded, processor = load_model(model_folder(checkpoint, None), dtype=dtype)
    model: Any = loaded
    model.to(device).eval()
    rows = [_row(processor, changed, device) for changed in range(_NUM_SAMPLES + 1)]
    control = [
        {name: x for name, x in row.items() if name not in ("sample_ids", "position_ids")} for row in rows
    ]
    results = [_measure(model, CONTROL, control, rows[0]["sample_ids"])]
    for backend in backends:
        reason = varlen_problem(device, dtype) if backend == VARLEN else None
        if reason is not None:
            results.append(PackingResult(backend=backend, verdict="not run", reason=reason))
            continue
        model.set_attn_implementation(backend)
        try:
            results.append(_measure(model, backend, rows, rows[0]["sample_ids"]))
        except Exception as error:  # a kernel may fail in any way, for example without a C++ compiler
            first_line, *_ = str(error).splitlines() or [""]
            said = f"{type(error).__name__}: {first_line}"
            results.append(PackingResult(backend=backend, verdict="not run", reason=said))
    return results


def print_packing(results: Sequence[PackingResult], console: Console) -> None:
    """One line a backend."""
    table = Table("attention", "leak", "own change", "verdict")
    for result in results:
        numbers = ["-" if x is None else f"{x:.3g}" for x in (result.leak, result.change)]
        table.add_row(
            result.backend, *numbers, result.verdict + (f": {result.reason}" if result.reason else "")
        )
    console.print(table)


def is_isolated(results: Sequence[PackingResult]) -> bool:
    """Whether no backend leaks, and the control does."""
    control, *backends = results
    return control.verdict == "leaks" and not any(result.verdict == "leaks" for result in backends)


def _measure(
    model: Any, name: str, rows: Sequence[dict[str, Tensor]], sample_ids_1T: Tensor
) -> PackingResult:
    """Change each sample in turn."""
    leak, change = 0.0, 0.0
    with torch.no_grad():
        before = model(**rows[0]).logits[0].float()
        for changed, row in enumerate(rows[1:], 1):
            moved_T = (model(**row).logits[0].float() - before).abs().amax(1)
            own_T = sample_ids_1T[0] == changed
            change = max(change, float(moved_T[own_T].max()))
            leak = max(leak, float(moved_T[~own_T].max()))
    return PackingResult(backend=name, verdict="leaks" if leak else "isolated", leak=leak, change=change)


def _row(processor: InfinityMMProcessor, changed: int, device: torch.device) -> dict[str, Tensor]:
    """Three samples with an image each, packed; sample `changed` (1 to 3) has other words and another picture."""
    tokenizer = processor.tokenizer
    plain = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    ids: list[list[int]] = []
    pictures: list[Image.Image] = []
    side = processor.image_processor.scale_px
    for number in range(1, _NUM_SAMPLES + 1):
        rng = np.random.default_rng((number, number == changed))
        size = (
            side,
            side * number,
            3,
        )  # the same plan for both pictures of a sample, another for each sample
        pictures.append(Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)))
        image = processor(images=[pictures[-1]], text=[processor.image_token])["input_ids"][0]
        ids.append([*image, *(plain[i] for i in rng.integers(0, len(plain), _TEXT_TOKENS))])
    images = processor.image_processor(pictures, return_tensors="pt")
    row = {
        "input_ids": [token for part in ids for token in part],
        "position_ids": [position for part in ids for position in range(len(part))],
        "sample_ids": [number for number, part in enumerate(ids, 1) for _ in part],
    }
    tensors = {name: torch.tensor([values]) for name, values in row.items()}
    tensors |= {"pixel_values": images["pixel_values"], "view_shapes": images["view_shapes"]}
    return {name: tensor.to(device) for name, tensor in tensors.items()}
