"""Does packing keep samples apart with this checkpoint, on this machine? The answer by measurement, per backend.

    checkpoint --three samples in one row--> change one sample --> largest change of the others' logits = leak

Each sample has an image and a random answer. The control is the same row with a plain causal mask, where later samples
see earlier ones: if its leak were 0, the test would be blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.encode import IGNORE, Encoded, RowEncoder
from infinity_mm.data.packing import Packed, pack
from infinity_mm.engines.model_files import model_folder
from infinity_mm.errors import explain
from infinity_mm.families import family_of
from infinity_mm.model.attention import BACKENDS, VARLEN, varlen_problem

_NUM_SAMPLES = 3
_WORDS = "one two three four five six seven eight nine ten"
_SIDE_PX = 96
"""Small, so that rows stay short where a family cuts by size."""
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


def check_packing(
    checkpoint: str, backends: Sequence[str] = BACKENDS, *, convert: bool = False
) -> list[PackingResult]:
    """The control and every backend, in float32 on a CPU and in bfloat16 on a GPU.

    `checkpoint` is a folder, a shipped name or a Hub id. It is checked as the model that training makes of it,
    with `convert` as that of `model.convert: true`.
    """
    disable_progress_bar()  # of transformers: loading takes a moment
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    folder = model_folder(checkpoint, None)
    family = family_of(folder, convert=convert)
    loaded, processor = family.load(folder, dtype=dtype)
    model: Any = loaded
    model.to(device)
    trainable = family.trainable(model).eval()
    encoder = family.encoder(processor)
    rows = [_row(encoder, processor, changed).to(device) for changed in range(_NUM_SAMPLES + 1)]
    control = [replace(row, sample_ids=torch.ones_like(row.sample_ids)) for row in rows]
    results = [_measure(trainable, CONTROL, control, rows[0].sample_ids, dtype)]
    for backend in backends:
        reason = varlen_problem(device, dtype) if backend == VARLEN else None
        if reason is not None:
            results.append(PackingResult(backend=backend, verdict="not run", reason=reason))
            continue
        try:
            model.set_attn_implementation(backend)
            results.append(_measure(trainable, backend, rows, rows[0].sample_ids, dtype))
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
    model: nn.Module, name: str, rows: Sequence[Packed], sample_ids_1T: Tensor, dtype: torch.dtype
) -> PackingResult:
    """Change each sample in turn."""
    leak, change = 0.0, 0.0
    before_TV = _logits(model, rows[0], dtype)
    for changed, row in enumerate(rows[1:], 1):
        moved_T = (_logits(model, row, dtype) - before_TV).abs().amax(1)
        own_T = sample_ids_1T[0] == changed
        change = max(change, float(moved_T[own_T].max()))
        leak = max(leak, float(moved_T[~own_T].max()))
    return PackingResult(backend=name, verdict="leaks" if leak else "isolated", leak=leak, change=change)


@torch.no_grad()
def _logits(model: nn.Module, row: Packed, dtype: torch.dtype) -> Tensor:
    # Pixels stay float32, as in training: some families put sizes beside them, which bfloat16 would round.
    with torch.autocast(row.input_ids.device.type, dtype, enabled=dtype != torch.float32):
        output = model(
            input_ids=row.input_ids,
            sample_ids=row.sample_ids,
            branch_ids=row.branch_ids,
            position_ids=row.position_ids,
            pixel_values=row.pixel_values,
            view_shapes=row.view_shapes,
        )
    logits_TV = output.logits[0].float()
    if not logits_TV.isfinite().all():  # no comparison would find a difference
        raise explain(
            what="the model's logits are not finite",
            where="doctor --packing",
            fix="check the checkpoint's weights",
        )
    return logits_TV


def _row(encoder: RowEncoder, processor: Any, changed: int) -> Packed:
    """Three samples with an image each, packed; sample `changed` (1 to 3) has another picture and answer of the same
    size and length."""
    words = processor.tokenizer(_WORDS, add_special_tokens=False).input_ids
    side = getattr(processor.image_processor, "scale_px", _SIDE_PX)
    samples: list[Encoded] = []
    for number in range(1, _NUM_SAMPLES + 1):
        rng = np.random.default_rng((number, number == changed))
        # Another plan for each sample, as far as the family cuts by shape.
        pixels = rng.integers(0, 256, (side, side * number, 3), dtype=np.uint8)
        sample = encoder.encode(
            Conversation(
                id=str(number),
                images=(Image.fromarray(pixels),),
                messages=(Message("user", "What?"), Message("assistant", _WORDS)),
            ),
            "causal",
        )
        layout = sample.layout
        ids = [
            id_ if label == IGNORE else int(rng.choice(words))
            for id_, label in zip(layout.input_ids, layout.labels, strict=True)
        ]
        samples.append(replace(sample, layout=replace(layout, input_ids=ids)))
    return pack([samples], sum(len(sample.layout) for sample in samples), encoder.pad_id)
