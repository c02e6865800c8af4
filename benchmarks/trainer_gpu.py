"""Training steps of a 2B model with random weights on one device: tokens/s, images/s, MFU, peak memory.

    python benchmarks/trainer_gpu.py                 # SigLIP-so400m and Qwen2.5-1.5B sizes; wants an 80 GB GPU
    python benchmarks/trainer_gpu.py --size tiny     # seconds on a CPU, to see that it runs

{one sample a row, packed} x {logits of all positions at once, ours} x {compiled or not} on the same samples: images of
real sizes, captions, questions and text, drawn here. Pixels are noise; no weights are loaded.
"""

import argparse
import itertools
import random
import time
from dataclasses import dataclass
from typing import Any

import torch

from infinity_mm.config import build
from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.encode import Encoder
from infinity_mm.data.packing import Packed, best_fit, pack
from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.flops import forward_flops, model_sizes
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.training.loss import local_loss, total_weight
from infinity_mm.training.monitor import peak_flops, step_flops

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
PICTURES = [(640, 480), (480, 640), (1024, 768), (1280, 720), (800, 1200), (336, 336), (1920, 1080)]


@dataclass(frozen=True)
class Way:
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


def steps_of(way: Way, samples: list, encoder: Encoder, row_tokens: int, rows: int) -> list[Packed]:
    """The samples as batches of `rows` rows; the last, smaller one is left out."""
    if way.packed:
        grouped = [
            [samples[i] for i in row] for row in best_fit([len(s.layout) for s in samples], row_tokens)
        ]
        width = row_tokens
    else:
        grouped, width = [[sample] for sample in samples], max(len(s.layout) for s in samples)
    whole = [grouped[i : i + rows] for i in range(0, len(grouped) - rows + 1, rows)]
    return [pack(batch, width, encoder.pad_id) for batch in whole]


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


def measure(way: Way, options: argparse.Namespace, device: torch.device) -> str:
    spec = build(ModelSpec, SIZES[options.size])
    tokenizer = build_tokenizer(["What is it? Describe it. red table light stands user assistant"] * 3, 400)
    model, processor = build_model(spec, tokenizer)
    encoder = Encoder(processor)
    # Random weights need no real vocabulary, but a head of its size.
    model.resize_token_embeddings(VOCAB[options.size], mean_resizing=False)
    model.train()
    torch.nn.Module.to(model, device)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way.compiled:
        for module in model.modules():
            if type(module).__name__ in (model._no_split_modules or ()):
                module.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    samples = [encoder.encode(c, "causal") for c in conversations(options.samples)]
    batches = steps_of(way, samples, encoder, options.row_tokens, options.rows)
    sizes, seconds, tokens, images, operations = model_sizes(model.config), 0.0, 0, 0, 0
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
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else "-"
    mfu = f"{operations / seconds / peak:.1%}" if peak else "-"
    fill = sum(b.num_tokens for b in batches) / sum(b.sample_ids.numel() for b in batches)
    return (
        f"| {way.name} | {fill:.0%} | {tokens / seconds:.0f} | {images / seconds:.1f} | "
        f"{operations / seconds / 1e12:.3g} | {mfu} | {memory} |"
    )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def expectation(size: str) -> str:
    """What the formulas say, before anything is timed."""
    model, _ = build_model(build(ModelSpec, SIZES["tiny"]), build_tokenizer(["user assistant"] * 3, 300))
    config = model.config
    for key, value in {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304}.items():
        setattr(config.vision_config, key, value)
    text = {
        "hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960, "vocab_size": VOCAB["2b"],
        "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128,
    }  # fmt: skip
    for key, value in text.items():
        setattr(config.text_config, key, value)
    sizes = model_sizes(config)
    view = 3 * forward_flops(sizes, views=[(28, 28)], tokens=0, labelled=0, attended_pairs=0).total
    token = 3 * forward_flops(sizes, views=[], tokens=1, labelled=0, attended_pairs=0).total
    label = 3 * forward_flops(sizes, views=[], tokens=0, labelled=1, attended_pairs=0).head
    return (
        f"Expected for the 2B model, forward and backward: {view / 1e12:.2f} TFLOP a view of 392 px, {token / 1e9:.2f} "
        f"GFLOP a token without attention, {label / 1e9:.2f} GFLOP a position with logits. At 40 % of an H100's 989 "
        f"TFLOP/s that is {0.4 * 989e12 / token / 1e3:.0f} thousand tokens a second of text, or "
        f"{0.4 * 989e12 / view:.0f} views."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="2b" if torch.cuda.is_available() else "tiny"
    )
    parser.add_argument("--row-tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2, help="rows of one step")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled half")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(expectation(options.size), f"\nThis run: {options.size} on {device}.\n")
    print("| rows | loss | compiled | fill | tokens/s | images/s | TFLOP/s | MFU | peak GB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for packed, own_loss, compiled in itertools.product(
        (False, True), (False, True), (False,) if options.no_compile else (False, True)
    ):
        print(measure(Way(packed, own_loss, compiled), options, device), flush=True)


if __name__ == "__main__":
    main()
