"""Training steps of a 2B model with random weights on one device: tokens/s, images/s, MFU, peak memory.

    python benchmarks/trainer_gpu.py                 # SigLIP-so400m and Qwen2.5-1.5B sizes; wants an 80 GB GPU
    python benchmarks/trainer_gpu.py --size 2b --dry # what the formulas expect, on a CPU
    python benchmarks/trainer_gpu.py --size tiny     # seconds on a CPU, to see that it runs

{one sample a row, packed} x {logits of all positions at once, ours} x {compiled or not} on the same samples: images of
real sizes, captions, questions and text, drawn here. Pixels are noise; no weights are loaded. First a table of what is
expected, then what is measured.
"""

import argparse
import gc
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infinity_mm.config import build
from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.encode import Encoded, Encoder
from infinity_mm.data.packing import Packed, balanced_fit, pack
from infinity_mm.model.build import ModelSpec, build_config, build_processor
from infinity_mm.model.cross_entropy import CHUNK_LOGITS
from infinity_mm.model.flops import ModelSizes, forward_flops, model_sizes, vision_flops
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.training.footprint import kept_bytes, num_patches
from infinity_mm.training.loss import local_loss, total_weight
from infinity_mm.training.monitor import BF16_PEAKS, peak_flops, step_flops

PARTS = ["vision_tower", "connector", "language_model"]
SIZES: dict[str, dict[str, Any]] = {
    "2b": {
        "vision_hidden": 1152, "vision_layers": 27, "vision_heads": 16, "vision_mlp": 4304, "patch_px": 14,
        "scale_px": 392, "text_hidden": 1536, "text_layers": 28, "text_heads": 12, "text_kv_heads": 2,
        "text_mlp": 8960, "max_slices": 6, "max_positions": 32768,
    },
    "tiny": {
        "vision_hidden": 32, "vision_layers": 1, "vision_heads": 1, "vision_mlp": 64, "patch_px": 14,
        "scale_px": 112, "text_hidden": 32, "text_layers": 1, "text_heads": 1, "text_kv_heads": 1,
        "text_mlp": 64, "max_slices": 2, "max_positions": 4096,
    },
}  # fmt: skip
VOCAB = {"2b": 151_936, "tiny": 2000}
ASSUMED_MFU = 0.4
"""Of all operations, useful or not, over an H100's peak; an assumption, no GPU was at hand."""
PICTURES = [(640, 480), (480, 640), (1024, 768), (1280, 720), (800, 1200), (336, 336), (1920, 1080)]


@dataclass(frozen=True)
class Way:
    """One cell of the table."""

    packed: bool
    own_loss: bool
    compiled: bool

    @property
    def name(self) -> str:
        rows = "packed" if self.packed else "one a row"
        return f"{rows} | {'ours' if self.own_loss else 'all logits'} | {'yes' if self.compiled else 'no'}"


def conversations(number: int) -> list[Conversation]:
    """Two thirds with an image; answers of a few words up to long captions."""
    from PIL import Image

    rng = random.Random(0)
    made: list[Conversation] = []
    for i in range(number):
        images = () if i % 3 == 2 else (Image.effect_noise(rng.choice(PICTURES), 60).convert("RGB"),)
        turns = [("Describe it.", 150)] if i % 2 else [("What is it?", 4), ("Why?", 40), ("Where?", 8)]
        messages = [
            message
            for question, words in turns
            for message in (
                Message("user", question),
                Message("assistant", " ".join(rng.choices(["red", "table", "light", "stands"], k=words))),
            )
        ]
        made.append(Conversation(id=str(i), images=images, messages=tuple(messages)))
    return made


def encoded(size: str, number: int) -> tuple[Any, Encoder, list[Encoded]]:
    """Configuration, encoder and samples; the head has the rows of a real one."""
    spec = build(ModelSpec, SIZES[size])
    tokenizer = build_tokenizer(["What is it? Describe it. red table light stands user assistant"] * 3, 400)
    config = build_config(spec, tokenizer)
    encoder = Encoder(build_processor(config, tokenizer))
    config.get_text_config().vocab_size = VOCAB[size]
    return config, encoder, [encoder.encode(c, "causal") for c in conversations(number)]


def steps_of(
    way: Way, samples: Sequence[Encoded], encoder: Encoder, sizes: ModelSizes, options: argparse.Namespace
) -> list[Packed]:
    """The samples as batches of so many rows; the last, smaller one is left out.

    Packed as the trainer does; one a row, a batch is as wide as its own longest sample.
    """
    rows = options.rows
    grouped = [[sample] for sample in samples]
    if way.packed:
        work = [
            0 if s.view_shapes is None
            else sum(vision_flops(sizes.vision, r, c) for r, c in s.view_shapes[:, 1:3].tolist())
            for s in samples
        ]  # fmt: skip
        fit = balanced_fit([len(s.layout) for s in samples], options.row_tokens, work, None)
        grouped = [[samples[i] for i in row] for row in fit]
    random.Random(0).shuffle(grouped)
    batches: list[Packed] = []
    for first in range(0, len(grouped) - rows + 1, rows):
        batch = grouped[first : first + rows]
        width = options.row_tokens if way.packed else max(len(s.layout) for row in batch for s in row)
        batches.append(pack(batch, width, encoder.pad_id))
    return batches


def loss_of_all_logits(model: Any, batch: Packed, weight: float) -> torch.Tensor:
    """What a model does that computes its head everywhere, in one go."""
    logits = model(
        input_ids=batch.input_ids,
        sample_ids=batch.sample_ids,
        branch_ids=batch.branch_ids,
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        view_shapes=batch.view_shapes,
        use_cache=False,
    ).logits
    flat = logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(flat, batch.labels[:, 1:].flatten(), reduction="sum") / weight


def expected(
    way: Way, batches: Sequence[Packed], sizes: ModelSizes, num_parameters: int, options: argparse.Namespace
) -> str:
    """A row of the expected table: means over the batches, memory of the largest."""
    useful, other = (total / len(batches) for total in step_flops(sizes, batches, PARTS))
    tokens = sum(batch.num_tokens for batch in batches) / len(batches)
    if not way.own_loss:  # the head is applied everywhere
        extra = sum(batch.input_ids.numel() - batch.num_labels for batch in batches) / len(batches)
        other += 3 * 2 * extra * sizes.text_hidden * sizes.vocab
    seconds = (useful + other) / (ASSUMED_MFU * BF16_PEAKS["H100"])
    positions = max(batch.input_ids.numel() for batch in batches)
    kept = kept_bytes(
        sizes,
        positions=positions,
        patches=max(num_patches(sizes, batch) for batch in batches),
        bf16=True,
        checkpointing=options.checkpointing,
        tower_learns=True,
    )
    logits = 3 * 4 * sizes.vocab * positions
    if way.own_loss:
        labels = max(batch.num_labels for batch in batches)
        logits = 3 * 4 * min(CHUNK_LOGITS, sizes.vocab * labels)
    states = 18 * num_parameters  # float32 weights, gradients, two moments, and bf16 copies
    fill = tokens * len(batches) / sum(batch.input_ids.numel() for batch in batches)
    return (
        f"| {way.name} | {fill:.0%} | {useful / 1e12:.3g} | {other / 1e12:.3g} | {seconds:.3g} | "
        f"{tokens / seconds:.0f} | {states / 1e9:.1f} + {kept / 1e9:.1f} + {logits / 1e9:.1f} |"
    )


def measure(
    way: Way, batches: Sequence[Packed], config: Any, options: argparse.Namespace, device: torch.device
) -> str:
    """A row of the measured table."""
    torch.manual_seed(0)
    with device:
        model: Any = InfinityMMForConditionalGeneration(config).train()
    if options.attention is not None:
        model.set_attn_implementation(options.attention)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way.compiled:
        for module in model.modules():
            if type(module).__name__ in (model._no_split_modules or ()):
                module.compile(backend=options.backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    sizes, seconds, tokens, images, operations = model_sizes(config), 0.0, 0, 0, 0
    done: list[Packed] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number, batch in enumerate(
        itertools.islice(itertools.cycle(batches), options.warmup + options.steps)
    ):
        _synchronise(device)
        start = time.perf_counter()
        moved, weight = batch.to(device), total_weight([batch], "token")
        with torch.autocast(device.type, torch.bfloat16):
            loss = (
                local_loss(model, moved, total_weight=weight).loss
                if way.own_loss
                else loss_of_all_logits(model, moved, weight)
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _synchronise(device)
        if number >= options.warmup:
            seconds += time.perf_counter() - start
            tokens, images = tokens + batch.num_tokens, images + batch.num_images
            operations += step_flops(sizes, [batch], PARTS)[0]
            done.append(batch)
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else "-"
    mfu = f"{operations / seconds / peak:.1%}" if peak else "-"
    fill = tokens / sum(batch.sample_ids.numel() for batch in done)
    return (
        f"| {way.name} | {fill:.0%} | {tokens / seconds:.0f} | {images / seconds:.1f} | "
        f"{operations / seconds / 1e12:.3g} | {mfu} | {memory} |"
    )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def expectation(sizes: ModelSizes) -> str:
    """What one view, token and label cost by the formulas."""
    view = 3 * forward_flops(sizes, views=[(28, 28)], tokens=0, labelled=0, attended_pairs=0).total
    token = 3 * forward_flops(sizes, views=[], tokens=1, labelled=0, attended_pairs=0).total
    label = 3 * forward_flops(sizes, views=[], tokens=0, labelled=1, attended_pairs=0).head
    return (
        f"Forward and backward: {view / 1e12:.3g} TFLOP a view of 28 x 28 patches, {token / 1e9:.3g} GFLOP a token "
        f"without attention, {label / 1e9:.3g} GFLOP a position with logits."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="2b" if torch.cuda.is_available() else "tiny"
    )
    parser.add_argument("--dry", action="store_true", help="print what is expected and stop")
    parser.add_argument("--row-tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2, help="rows of one step")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--attention", choices=("sdpa", "flex_attention", "varlen"))
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled half")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, encoder, samples = encoded(options.size, options.samples)
    sizes = model_sizes(config)
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in InfinityMMForConditionalGeneration(config).parameters())
    ways = [
        Way(packed=packed, own_loss=own_loss, compiled=compiled)
        for packed, own_loss, compiled in itertools.product(
            (False, True), (False, True), (False,) if options.no_compile else (False, True)
        )
    ]
    batches = {
        packed: steps_of(Way(packed, True, False), samples, encoder, sizes, options)
        for packed in (False, True)
    }
    print(f"{options.size}, {num_parameters / 1e6:.0f} M parameters. {expectation(sizes)}")
    print(f"\nExpected on an H100 at {ASSUMED_MFU:.0%} of its peak (compiling changes no operation):\n")
    print("| rows | loss | compiled | fill | useful TFLOP | other TFLOP | s a step | tokens/s | GB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for way in ways:
        print(expected(way, batches[way.packed], sizes, num_parameters, options))
    if options.dry:
        return
    print(f"\nMeasured on {device}:\n")
    print("| rows | loss | compiled | fill | tokens/s | images/s | TFLOP/s | MFU | peak GB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for way in ways:
        try:
            row = measure(way, batches[way.packed], config, options, device)
        except torch.OutOfMemoryError:
            row = f"| {way.name} | OOM | | | | | |"
        print(row, flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
