"""Samples a second of one training process on a CPU: our packed rows beside Hugging Face's Trainer and TRL.

    python benchmarks/trainer_cpu.py --samples 480 --rounds 3

Everyone trains the same model from the same weights on the same Parquet file for one epoch, with the same encoder, the
same AdamW, one thread, and as many samples a step on average. The runs take turns, each in a process of its own, so
that peak memory is its own. Time is processor time of the training loop, data included; a busy machine disturbs it less
than the clock. A last run of each, not timed, keeps five checkpoints, whose loss on held-out samples is the curve.

TRL gets the text-only mix and transformers' Qwen2 of the same sizes, because it puts a language-model head of its own
into the model and packs no pictures; it runs padded and with its own packing.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments

from infinity_mm.config import build
from infinity_mm.data.conversation import Conversation
from infinity_mm.data.encode import IGNORE, Encoded, Encoder
from infinity_mm.data.packing import best_fit
from infinity_mm.data.sources import ParquetSource
from infinity_mm.model.build import NANO, ModelSpec, build_model
from infinity_mm.model.load import load_model
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.training import sft
from infinity_mm.training.checkpoint import read_state
from infinity_mm.training.config import SftConfig

SIZES = {
    "2b": ModelSpec(
        vision_hidden=192, vision_layers=3, vision_heads=6, vision_mlp=768, patch_px=8, scale_px=64,
        text_hidden=256, text_layers=6, text_heads=8, text_kv_heads=4, text_mlp=704,
    ),
    "nano": NANO,
}  # fmt: skip
"""`2b`: tower and language model in the proportion of SigLIP-so400m and Qwen2.5-1.5B (1 to 3), a five-hundredth of the
size. `nano`: the wind tunnel's, whose tower is almost as large as its language model. Padding costs the tower nothing,
because every contestant encodes its pictures packed, so the larger the tower, the less there is to win."""
BATCH = 8
"""Samples of one optimiser step; ours packs as many on average."""
LR, BETAS, WARMUP_STEPS = 1e-3, (0.9, 0.98), 20
KINDS = {"vqa": 0.5, "caption": 0.3, "text": 0.2}
"""The mix, decided before anything was timed: one small picture and a short answer; one sliced picture and 30 to 120
words; no picture and 40 to 400 words, short ones more often."""
COLORS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
RGB = (
    (255, 0, 0),
    (0, 160, 0),
    (0, 0, 255),
    (255, 255, 0),
    (255, 255, 255),
    (0, 0, 0),
    (128, 0, 128),
    (255, 140, 0),
)
PLACES = ("upper left", "upper right", "lower left", "lower right")
VERBS = ("sees", "holds", "finds", "paints", "moves", "keeps")
THINGS = ("lamp", "stone", "bird", "chair", "cloud", "river", "table", "coin")


def sentence(rng: random.Random) -> str:
    """Seven words that follow from three draws, so that there is something to learn."""
    color, verb, thing = rng.randrange(8), rng.randrange(6), rng.randrange(8)
    other = THINGS[(thing + verb) % 8]
    return f"the {COLORS[color]} {THINGS[thing]} {VERBS[verb]} a {COLORS[(color + verb) % 8]} {other} ."


def words(rng: random.Random, count: int) -> str:
    return " ".join(sentence(rng) for _ in range(max(1, count // 8)))


def picture(rng: random.Random, side_px: int) -> tuple[bytes, list[int]]:
    """Four coloured quarters as PNG."""
    colors = [rng.randrange(8) for _ in PLACES]
    quarters = np.array([RGB[c] for c in colors], dtype=np.uint8).reshape(2, 2, 3)
    buffer = io.BytesIO()
    Image.fromarray(quarters.repeat(side_px // 2, 0).repeat(side_px // 2, 1)).save(buffer, "PNG")
    return buffer.getvalue(), colors


def row(index: int, seed: int, *, text_only: bool) -> dict[str, Any]:
    """One sample in our published format."""
    rng = random.Random(f"{seed}/{index}")
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    images: list[dict[str, Any]] = []
    if kind == "text":
        question, answer = words(rng, 10), words(rng, round(40 * 10 ** rng.random()))
    else:
        data, colors = picture(rng, 64 if kind == "vqa" else 128)
        images = [{"bytes": data, "path": None}]
        place = rng.randrange(4)
        told = " ".join(f"{PLACES[i]} is {COLORS[c]} ." for i, c in enumerate(colors))
        question = f"what color is {PLACES[place]} ?" if kind == "vqa" else "describe the picture ."
        answer = COLORS[colors[place]] if kind == "vqa" else f"{told} {words(rng, rng.randint(30, 120))}"
        if text_only:  # as many words as the picture had tokens
            images, question = [], f"{told} {words(rng, 0 if kind == 'vqa' else 70)} {question}"
    content = [{"type": "image", "text": None}] * len(images) + [{"type": "text", "text": question}]
    return {
        "id": f"{kind}-{index}",
        "images": images,
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "source": kind,
    }


class Samples:
    """The samples of one folder, encoded when asked for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.source = ParquetSource(path=str(folder / f"{name}.parquet"))
        self.model, processor = load_model(folder / "model")
        self.encoder = Encoder(processor)

    def __len__(self) -> int:
        return len(self.source)

    def conversation(self, index: int) -> Conversation:
        return self.source[index]

    def encoded(self, index: int) -> Encoded:
        return self.encoder.encode(self.conversation(index), "causal")

    def lengths(self) -> list[int]:
        return [len(self.encoded(i).layout) for i in range(len(self))]

    def padded(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch the usual way: padded on the right to its longest sample."""
        samples = [self.encoded(i) for i in indices]
        longest = max(len(s.layout) for s in samples)

        def lines(values: list[list[int]], padding: int) -> Tensor:
            return torch.tensor([line + [padding] * (longest - len(line)) for line in values])

        shapes, pixels = [], []
        for s in samples:
            if s.view_shapes is not None and s.pixel_values is not None:
                shapes.append(s.view_shapes + torch.tensor([len(shapes), 0, 0]))
                pixels.append(s.pixel_values)
        batch = {
            "input_ids": lines([s.layout.input_ids for s in samples], self.encoder.pad_id),
            "labels": lines([s.layout.labels for s in samples], IGNORE),
            "attention_mask": lines([[1] * len(s.layout) for s in samples], 0),
        }
        return batch | (
            {"pixel_values": torch.cat(pixels), "view_shapes": torch.cat(shapes)} if shapes else {}
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One contestant's run, in this process."""

    name: str
    folder: Path
    out_dir: Path
    saves: int
    """Checkpoints to keep; 0 in a timed run."""
    row_tokens: int

    def train(self) -> dict[str, float]:
        """Train; returns samples, processor seconds, peak memory in MB, and the memory before training."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        samples, cpu_s = self.packed() if self.name == "packed" else self.padded()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"samples": samples, "cpu_s": cpu_s, "peak_mb": peak, "before_mb": before}

    def packed(self) -> tuple[int, float]:
        """Our trainer; rows are counted before the clock starts, as lengths are for length grouping."""
        layout = json.loads((self.folder / "rows.json").read_text())
        steps = layout["steps"]
        part = {"lr": LR}
        config = build(
            SftConfig,
            {
                "out_dir": self.out_dir,
                "model": {"path": str(self.folder / "model")},
                "data": [{"kind": "parquet", "options": {"path": str(self.folder / "train.parquet")}}],
                "row_tokens": self.row_tokens,
                "global_batch_rows": layout["rows_per_step"],
                "micro_batch_rows": layout["rows_per_step"],
                "steps": steps,
                "vision_tower": part,
                "connector": part,
                "language_model": part,
                "betas": list(BETAS),
                "schedule": {"name": "constant", "warmup_steps": WARMUP_STEPS},
                "num_workers": 0,
                "threads": 1,
                "save_every_steps": max(1, steps // self.saves) if self.saves else steps,
                "keep_last": max(1, self.saves + 1),
            },
        )
        spent = 0.0
        loop = sft.run_steps

        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            state = loop(*args, **kwargs)
            spent = time.process_time() - start
            return state

        sft.run_steps = timed
        result = sft.train(config, quiet=True)
        return result.samples, spent

    def padded(self) -> tuple[int, float]:
        """Hugging Face's Trainer, or TRL's."""
        samples = Samples(self.folder, "train")
        lengths = json.loads((self.folder / "lengths.json").read_text())
        steps = len(lengths) // BATCH
        options: dict[str, Any] = {
            "output_dir": str(self.out_dir),
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 1,
            "learning_rate": LR,
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": WARMUP_STEPS,
            "optim": "adamw_torch_fused",
            "train_sampling_strategy": "group_by_length" if self.name == "grouped" else "random",
            "remove_unused_columns": False,
            "dataloader_num_workers": 0,
            "save_strategy": "steps" if self.saves else "no",
            "save_steps": max(1, steps // self.saves) if self.saves else steps,
            "save_only_model": True,
            "logging_steps": 10,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
        }
        if self.name.startswith("trl"):
            trainer = self._trl(samples, options)
        else:
            trainer = Trainer(
                model=samples.model.train(),
                args=TrainingArguments(**options),
                train_dataset=Dataset.from_dict({"index": list(range(len(lengths))), "length": lengths}),
                data_collator=lambda rows: samples.padded([r["index"] for r in rows]),
            )
        start = time.process_time()
        trainer.train()
        return len(lengths), time.process_time() - start

    def _trl(self, samples: Samples, options: dict[str, Any]) -> Any:
        """SFTTrainer on samples that are tokenised before the clock starts."""
        from trl.trainer.sft_config import SFTConfig as TrlConfig
        from trl.trainer.sft_trainer import SFTTrainer

        layouts = [samples.encoded(i).layout for i in range(len(samples))]
        data = {"input_ids": [x.input_ids for x in layouts], "labels": [x.labels for x in layouts]}
        packing: dict[str, Any] = {"packing": False, "max_length": None}
        if self.name == "trl_packed":
            packing = {"packing": True, "max_length": self.row_tokens}
            options = options | {"per_device_train_batch_size": 1}
        return SFTTrainer(
            model=language_model_alone(samples.model),
            args=TrlConfig(**options, **packing),
            train_dataset=Dataset.from_dict(data),
            processing_class=samples.encoder.tokenizer,
        )


def language_model_alone(model: Any) -> Qwen2ForCausalLM:
    """transformers' Qwen2 with the weights of our language model."""
    alone = Qwen2ForCausalLM(model.config.text_config)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    return alone


def prepare(folder: Path, args: argparse.Namespace, *, text_only: bool) -> None:
    """Write model, training and held-out samples, and what both sides know about lengths; print the mix."""
    row_tokens: int = args.row_tokens
    rows = [row(i, 0, text_only=text_only) for i in range(args.samples)]
    held_out = [row(i, 1, text_only=text_only) for i in range(128)]
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    schema = pa.schema(
        {
            "id": pa.string(),
            "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))])),
            "source": pa.string(),
        }
    )
    for name, some in (("train", rows), ("held_out", held_out)):
        pq.write_table(pa.Table.from_pylist(some, schema), folder / f"{name}.parquet")
    texts = [part["text"] or "" for r in rows for m in r["messages"] for part in m["content"]]
    model, processor = build_model(SIZES[args.model], build_tokenizer(texts, 400))
    for saved in (model, processor):
        saved.save_pretrained(folder / "model")
    lengths = Samples(folder, "train").lengths()
    (folder / "lengths.json").write_text(json.dumps(lengths))
    windows = [best_fit(lengths[i : i + 256], row_tokens) for i in range(0, len(lengths), 256)]
    num_rows = sum(map(len, windows))
    rows_per_step = max(1, round(num_rows * BATCH / len(lengths)))
    (folder / "rows.json").write_text(
        json.dumps({"rows_per_step": rows_per_step, "steps": num_rows // rows_per_step})
    )
    order = random.Random(0).sample(lengths, len(lengths))
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"\n{'text only' if text_only else 'pictures and text'}, model {args.model} ({size:.1f} M parameters): "
        f"{len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens, mean {mean(lengths):.0f}, median "
        f"{median(lengths):.0f}.\nUseful positions: random batches of {BATCH} {_useful(order):.0%}, grouped "
        f"{_useful(sorted(lengths)):.0%}, rows of {row_tokens} {sum(lengths) / num_rows / row_tokens:.0%} "
        f"({len(lengths) / num_rows * rows_per_step:.1f} samples a step)\n",
        flush=True,
    )


def _useful(lengths: Sequence[int]) -> float:
    batches = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
    return sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


def held_out_loss(name: str, checkpoint: Path, samples: Samples) -> float:
    """Mean over all supervised tokens of the held-out samples."""
    if name == "packed":
        model, _ = load_model(checkpoint)
    else:
        kind = Qwen2ForCausalLM if name.startswith("trl") else type(samples.model)
        model = kind.from_pretrained(checkpoint)
    total, count = 0.0, 0
    with torch.inference_mode():
        for first in range(0, len(samples), BATCH):
            batch = samples.padded(range(first, min(first + BATCH, len(samples))))
            num_labels = int((batch["labels"][:, 1:] != IGNORE).sum())
            total += float(model.eval()(**batch).loss) * num_labels
            count += num_labels
    return total / count


def in_own_process(name: str, folder: Path, out_dir: Path, saves: int, row_tokens: int) -> dict[str, float]:
    """A run; its last line of output is its result."""
    command = [sys.executable, __file__, "--one", name, "--folder", folder, "--out", out_dir]
    command += ["--saves", saves, "--row-tokens", row_tokens]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def race(folder: Path, names: Sequence[str], rounds: int, row_tokens: int) -> None:
    """Print samples a second and peak memory."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in random.Random(number).sample(list(names), len(names)):
            results[name].append(in_own_process(name, folder, folder / f"{name}-{number}", 0, row_tokens))
    print("| trainer | samples per CPU second | ours is faster by | peak memory, MB (before training) |")
    print("|---|---|---|---|")
    for name in names:
        each = [r["samples"] / r["cpu_s"] for r in results[name]]
        own = [r["samples"] / r["cpu_s"] for r in results["packed"]]
        ratios = sorted(a / b for a, b in zip(own, each))
        faster = "" if name == "packed" else f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        memory = [median(r[key] for r in results[name]) for key in ("peak_mb", "before_mb")]
        print(
            f"| {LABELS[name]} | {median(each):.1f} | {faster} | {memory[0]:.0f} ({memory[1]:.0f}) |",
            flush=True,
        )


def curves(folder: Path, names: Sequence[str], row_tokens: int) -> None:
    """Print held-out loss after equal shares of the epoch."""
    samples = Samples(folder, "held_out")
    print("\n| held-out loss (samples seen) | 20 % | 40 % | 60 % | 80 % | 100 % |\n|---|---|---|---|---|---|")
    for name in names:
        out_dir = folder / f"{name}-curve"
        in_own_process(name, folder, out_dir, 5, row_tokens)
        saved = sorted(out_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[:5]
        cells = []
        for checkpoint in saved:
            num = (
                read_state(checkpoint).samples
                if name == "packed"
                else int(checkpoint.name.split("-")[1]) * BATCH
            )
            cells.append(f"{held_out_loss(name, checkpoint, samples):.3f} ({num})")
        print(f"| {LABELS[name]} | {' | '.join(cells)} |", flush=True)


LABELS = {
    "packed": "ours, packed rows",
    "random": "HF Trainer, padded, random order",
    "grouped": "HF Trainer, padded, group_by_length",
    "trl": "TRL SFTTrainer, padded, random order",
    "trl_packed": "TRL SFTTrainer, its own packing",
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--model", choices=SIZES, default="2b")
    parser.add_argument("--no-curves", action="store_true")
    parser.add_argument("--one", choices=LABELS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--saves", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        run = Run(
            name=args.one,
            folder=args.folder,
            out_dir=args.out,
            saves=args.saves,
            row_tokens=args.row_tokens,
        )
        print(json.dumps(run.train()))
        return
    for text_only, names in (
        (False, ("packed", "random", "grouped")),
        (True, ("packed", "trl", "trl_packed")),
    ):
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), args, text_only=text_only)
            race(Path(name), names, args.rounds, args.row_tokens)
            if not args.no_curves:
                curves(Path(name), names, args.row_tokens)


if __name__ == "__main__":
    main()
