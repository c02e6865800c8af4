"""The configuration of one fine-tuning run: what `train/sft.py --config` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from infinity_mm.errors import explain
from infinity_mm.model.build import ModelSpec
from infinity_mm.model.parts import PartsSpec


def _at_least_one(config: object, where: str, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise explain(what=f"{name}={getattr(config, name)}", where=where, fix="give at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """One data source of the mixture."""

    kind: str
    """Name in `infinity_mm.data.sources.SOURCES`."""
    name: str | None = None
    """What metrics, ledger and quarantine call it; None: its kind and number, as in `parquet-0`."""
    weight: float = 1.0
    """Times each of its samples is seen in one epoch; 0: none, for a source that a later phase brings in."""
    cap: int | None = None
    """Most samples of it in one epoch, all its domains together; None: no limit."""
    domains: dict[str, float] = field(default_factory=dict)
    """Domain -> factor on `weight`, 0 leaves it out, 1 for those not named; needs `index_dir`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the source, for example path, turns, or the wind tunnel's tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseConfig:
    """From one step on, another mixture of the same sources."""

    start: int | Literal["decay"]
    """First optimiser step of the phase, from 0; `decay`: where the decay of the schedule `wsd` begins."""
    weights: dict[str, float]
    """Name of a source -> its weight in this phase, 0 leaves it out; sources not named keep theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """How the tokenizer of a from-scratch model is learned, from texts."""

    vocab_size: int = 1500
    """Tokens, special ones and all bytes included."""
    num_samples: int = 2000
    """Conversations whose texts are read."""
    data: tuple[DataConfig, ...] = ()
    """Sources to read; empty: the training data. A model that later stages train needs their words too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """Where the weights come from: a checkpoint folder, or a specification for a model from scratch."""

    path: str | None = None
    """Checkpoint folder with model and processor."""
    convert: bool = False
    """Used with `path` only: make our own model of LLaVA-OneVision's weights in transformers' names, instead of
    training transformers' class. In LLaVA-NeXT's names (Aquila-VL) they always become ours."""
    scale_px: int | None = None
    """Used with `path` only: side of the square whose area one view may have from now on, in pixels; None keeps the
    checkpoint's."""
    max_slices: int | None = None
    """Used with `path` only, for a model with `views: uhd`: most slices of an image from now on, 0 for the overview
    alone; None keeps the checkpoint's."""
    max_grid: int | None = None
    """Used with `path` only, for a model with `views: anyres`: an image may be cut into grids of 1x1 to so many tiles
    squared from now on; 0 for the base view alone."""
    max_tiles: int | None = None
    """Used with `path` only, for a model with `views: anyres`: the cap of its feature maps from now on, in tiles."""
    min_pixels: int | None = None
    """Used with `path` only, for families that resize images by area: least area of a resized image."""
    max_pixels: int | None = None
    """The same: largest area."""
    build: ModelSpec | None = None
    """Sizes of a model from scratch."""
    vision_tower: str | None = None
    """Used with `build` only: folder of a trained vision tower of these sizes, as train/tower.py writes it."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Used with `build` only."""
    parts: PartsSpec | None = None
    """Published vision tower and language model with a fresh connector between them."""
    attention: Literal["eager", "sdpa", "sdpa_float32", "flex_attention", "varlen"] | None = None
    """Attention backend (docs/model.md); None: sdpa, and sdpa_float32 on a CPU."""

    def __post_init__(self) -> None:
        if sum(start is not None for start in (self.path, self.build, self.parts)) != 1:
            raise explain(
                what="exactly one of model.path, model.build and model.parts must be given",
                where="YAML section `model`",
                fix="path: a checkpoint; build: a model from scratch; parts: published parts",
            )
        if self.build is None and self.vision_tower is not None:
            raise explain(
                what="model.vision_tower is for model.build; a part or checkpoint has a tower of its own",
                where="YAML section `model`",
                fix="remove one of them",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters beside frozen weights (LoRA, arXiv 2106.09685), through peft."""

    r: int = 16
    """Rank of the adapters."""
    alpha: int = 32
    """Adapters count alpha / r times."""
    dropout: float = 0.0
    """Share of an adapter's inputs set to zero in training."""
    targets: tuple[Literal["vision_tower", "connector", "language_model"], ...] = ("language_model",)
    """Parts whose linear layers get adapters; the head gets none."""
    layers: tuple[str, ...] = ()
    """Last names of these layers, such as q_proj; empty: all linear layers."""
    train_connector: bool = False
    """Train the whole connector beside the adapters; it is saved with them."""
    base: Literal["float32", "bfloat16", "nf4"] = "float32"
    """How the frozen weights are held; nf4 is QLoRA (arXiv 2305.14314), needs bitsandbytes and a GPU."""
    seed: int = 0
    """Seed of the adapters' first weights."""
    merge: bool = False
    """Write the final model with the adapters merged into the weights instead of the adapters alone."""

    def __post_init__(self) -> None:
        if not self.targets or (self.train_connector and "connector" in self.targets):
            raise explain(
                what=f"targets={list(self.targets)}, train_connector={self.train_connector}",
                where="YAML section `lora`",
                fix="name at least one part in targets, and the connector in one of the two places only",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """Optimiser settings of one part of the model."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; norms, biases and embeddings are never decayed."""
    freeze: bool = False
    """Do not train this part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over the run, as a factor of each group's peak."""

    name: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """`wsd`: warm up, stay, decay at the end (MiniCPM); `cosine`: warm up, half a cosine; `linear`: warm up, a straight
    line down; `constant`: warm up, stay."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_fraction: float = 0.0
    """The same as a share of the run, where `warmup_steps` is 0."""
    decay_fraction: float = 0.2
    """Last part of the run over which `wsd` decays."""
    decay_steps: int | None = None
    """The same in steps; goes before `decay_fraction`."""
    decay: Literal["exponential", "linear", "one_minus_sqrt"] = "exponential"
    """How `wsd` goes down. `one_minus_sqrt`: 1 - sqrt(share of the decay that is done), steep at first."""
    final_ratio: float = 0.1
    """Factor at the end of `wsd`, `cosine` and `linear`."""
    branch_from: Path | None = None
    """A checkpoint of another run, in its stable phase: this run takes its model, optimiser, step and place in the
    data, and decays. The other run may go on. The result is that of a run that had this schedule from the start."""

    def __post_init__(self) -> None:
        for name in ("warmup_fraction", "decay_fraction", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise explain(
                    what=f"{name}={getattr(self, name)}",
                    where="YAML section `schedule`",
                    fix="give a number between 0 and 1",
                )
        if self.name == "wsd" and self.decay == "exponential" and self.final_ratio == 0:
            raise explain(
                what="an exponential decay never arrives at final_ratio=0",
                where="YAML section `schedule`",
                fix="set decay: linear or one_minus_sqrt, or a final_ratio above 0",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikeConfig:
    """What happens to a step whose loss is not finite or far above the last ones; decided before the optimiser."""

    action: Literal["stop", "skip", "rewind"] = "stop"
    """`stop`: end the run and name the samples. `skip`: leave the step's gradient out and list its samples in
    skipped.jsonl. `rewind`: the same, and weights and optimiser go back to the last copy in memory."""
    factor: float | None = None
    """A loss above this many times the median of the last `window` losses is a spike; None: only a loss or gradient
    that is not finite counts."""
    window: int = 50
    """Losses the median is taken of; before that many steps nothing is a spike."""
    snapshot_every_steps: int = 50
    """Steps between two copies in the memory of the CPU; used by `rewind` only."""
    quarantine: bool = False
    """Put the samples of a bad step on the run's quarantine list, so that a run which is given it leaves them out."""
    max_in_a_row: int = 5
    """So many bad steps one after the other stop the run whatever `action` is."""

    def __post_init__(self) -> None:
        if self.factor is not None and self.factor <= 1:
            raise explain(
                what=f"spike.factor={self.factor}",
                where="YAML section `spike`",
                fix="give a number above 1, for example 2",
            )
        _at_least_one(self, "YAML section `spike`", "window", "snapshot_every_steps", "max_in_a_row")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutConfig:
    """A loss measured every so often on data that is not trained on."""

    data: tuple[DataConfig, ...]
    """The mixture to measure on."""
    every_steps: int
    """Steps between two measurements; there is always one at the end."""
    rows: int = 64
    """Packed rows measured, always the same ones; a multiple of processes x micro_batch_rows."""

    def __post_init__(self) -> None:
        _at_least_one(self, "YAML section `held_out`", "every_steps", "rows")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """Held-out questions that the model is asked every so often, greedily, and once more about blank images."""

    name: str
    """What metrics call it."""
    kind: str
    """Name in `infinity_mm.data.sources.SOURCES`: every answer in the data is asked for. `windtunnel`: its held-out
    world, as `infinity-mm eval` has it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the source; for `windtunnel` world_seed, num_images, questions_per_image, prompts."""
    every_steps: int
    """Steps between two measurements; there is always one at the end."""
    max_samples: int | None = 200
    """Conversations (or drawn images) asked about, spread evenly over the data and always the same; None: all."""
    max_new_tokens: int = 32
    """Longest answer; a longer one is cut, and graded as it is."""
    grading: Literal["exact", "normalised"] = "normalised"
    """`normalised`: case, punctuation, articles and numbers in words do not count, nor what stands before the last
    `Answer:`. `windtunnel` has a grader of its own."""
    accepted: Literal["whole", "lines"] = "whole"
    """What counts as right: the answer in the data, or each of its lines."""
    batch: int = 16
    """Questions answered together by one process."""

    def __post_init__(self) -> None:
        _at_least_one(self, "YAML section `tasks`", "every_steps", "max_new_tokens", "batch")
        if self.max_samples is not None:
            _at_least_one(self, "YAML section `tasks`", "max_samples")


HELD_OUT_LOSS = "held_out_loss"
"""The name of this measurement beside those of tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SftConfig:
    """One fine-tuning run."""

    out_dir: Path
    """Folder of checkpoints, metrics and the final model."""
    model: StartConfig
    """Where the weights come from."""
    data: tuple[DataConfig, ...]
    """The mixture."""
    row_tokens: int
    """Positions of one packed row; also the longest sample."""
    global_batch_rows: int
    """Rows of one optimiser step, over all processes and micro-steps."""
    micro_batch_rows: int
    """Rows of one forward pass of one process."""
    steps: int | None = None
    """Optimiser steps; or give `epochs`."""
    epochs: float | None = None
    """Passes over the mixture; costs one pass over the texts at the start, to count rows."""
    window: int = 4096
    """Samples packed together; more fill rows better. Without `index_dir` they are measured when their turn comes."""
    row_vision_gflops: float | None = None
    """Most work of the vision tower for the images of one row, forward, in 10^9 operations; None: no limit."""
    over_long: Literal["drop", "error", "truncate_turns"] = "drop"
    """What happens to a sample that does not fit a row: dropped and counted, an error, or as many of its first
    exchanges as fit (dropped if not even one does)."""
    index_dir: Path | None = None
    """Folder that keeps the measurements of all samples, made before the first step and shared between runs; None:
    nothing is kept, which suits drawn data."""
    mix_temperature: float = 1.0
    """Shares of the sources are weight * size ** (1 / temperature): 1 keeps them, more evens sizes out."""
    mix_by_phase: tuple[PhaseConfig, ...] = ()
    """Other weights from some step on."""
    quarantine: Path | None = None
    """List of samples that are not trained on, quarantine.jsonl of an earlier run; the run's own begins with it."""
    vision_tower: GroupConfig = field(default_factory=GroupConfig)
    """The vision tower."""
    connector: GroupConfig = field(default_factory=GroupConfig)
    """The connector."""
    language_model: GroupConfig = field(default_factory=GroupConfig)
    """The language model with embedding and head."""
    lora: LoraConfig | None = None
    """Train adapters; all else is then frozen. The parts' learning rates hold for what is trained in them."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run."""
    loss_weighting: Literal["token", "square_root", "sample"] = "token"
    """`token`: every supervised token counts 1; `square_root`: an answer of n tokens counts sqrt(n); `sample`: a sample
    counts 1."""
    neftune_alpha: float = 0.0
    """Strength of uniform noise on text embeddings in training (NEFTune, arXiv 2310.05914), usually 5; 0: none."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: orthogonal momentum for hidden matrices, AdamW for the rest; see `training/muon.py`."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's betas."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: matrix products in bfloat16, weights and optimiser in float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile the layers of language model and vision tower with torch.compile."""
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    """What happens to a step with a bad loss."""
    held_out: HeldOutConfig | None = None
    """Loss on other data during the run."""
    tasks: tuple[TaskConfig, ...] = ()
    """Questions with known answers that the model is asked during the run."""
    keep_best: str = HELD_OUT_LOSS
    """What makes a checkpoint the best: `held_out_loss`, or the accuracy of the task of this name."""
    seed: int = 0
    """Seed of sample order and of everything random in a step."""
    num_workers: int = 2
    """Background processes that read and encode, and one more that plans; 0: all in the training process."""
    threads: int | None = None
    """Threads of one process for matrix products; None leaves torch's choice."""
    save_every_steps: int = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = 2
    """Checkpoints kept; beside them the best one by `keep_best`, where that is measured."""
    save_in_background: bool = False
    """Write checkpoints from a copy in CPU memory while training goes on."""
    log_every_steps: int = 10
    """Steps between progress lines; metrics.jsonl has every step."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Also report to these, through accelerate; TensorBoard needs the `train` extra, the others their own package.
    None: to TensorBoard where it is installed."""
    peak_flops: float | None = None
    """Operations a second one process's device could do at best, for MFU; None: known GPUs have theirs from a table."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the final model's weights; checkpoints are always float32."""

    def __post_init__(self) -> None:
        names = [source_name(number, source) for number, source in enumerate(self.data)]
        unknown = {name for phase in self.mix_by_phase for name in phase.weights} - set(names)
        if len(set(names)) < len(names) or unknown:
            raise explain(
                what=f"mix_by_phase names {', '.join(sorted(unknown))}"
                if unknown
                else "two sources have one name",
                where="training configuration, sources: " + ", ".join(names),
                fix="give every source in `data` a name of its own, and use these names",
            )
        measured = [HELD_OUT_LOSS, *(task.name for task in self.tasks)]
        if len(set(measured)) < len(measured) or self.keep_best not in measured:
            raise explain(
                what=f"tasks are called {', '.join(measured[1:])}; keep_best: {self.keep_best}",
                where="training configuration",
                fix=f"give every task a name of its own, other than {HELD_OUT_LOSS}; keep_best is one of them, or "
                f"{HELD_OUT_LOSS}",
            )
        best = next((task for task in self.tasks if task.name == self.keep_best), None)
        if best is not None and self.save_every_steps % best.every_steps:
            raise explain(
                what=f"a checkpoint every {self.save_every_steps} steps, but the task {best.name} is asked every "
                f"{best.every_steps}, so most checkpoints have no score",
                where="training configuration, keep_best",
                fix="let save_every_steps be a multiple of the task's every_steps",
            )
        if self.mix_by_phase and self.steps is None:
            raise explain(
                what="mix_by_phase is given with epochs, whose number of steps depends on the mixture",
                where="training configuration",
                fix="set steps in place of epochs",
            )
        if (self.steps is None) == (self.epochs is None):
            raise explain(
                what="exactly one of steps and epochs must be given",
                where="training configuration",
                fix="set steps for a source without end, epochs for a finite data set",
            )
        counts = (
            "row_tokens",
            "global_batch_rows",
            "micro_batch_rows",
            "window",
            "save_every_steps",
            "keep_last",
        )
        _at_least_one(self, "training configuration", *counts)
        if self.lora is not None:
            if self.lora.train_connector and self.lora.base != "float32" and self.precision == "fp32":
                raise explain(
                    what=f"a connector trained in float32 cannot read what a frozen tower in {self.lora.base} gives it",
                    where="lora.train_connector with precision: fp32",
                    fix="set precision: bf16, or base: float32",
                )
            if self.model.path is None:
                raise explain(
                    what="lora is given, but the model starts from scratch",
                    where="YAML section `lora`",
                    fix="give model.path, or remove lora: adapters change a trained model a little",
                )
            if self.vision_tower.freeze or self.connector.freeze or self.language_model.freeze:
                raise explain(
                    what="a part says freeze: true, but with lora everything is frozen but what lora names",
                    where="YAML section `lora`",
                    fix="remove freeze; choose parts by lora.targets",
                )
        if self.vision_tower.freeze and self.connector.freeze and self.language_model.freeze:
            raise explain(
                what="every part of the model is frozen",
                where="training configuration",
                fix="set freeze: false in vision_tower, connector or language_model",
            )


def source_name(number: int, source: DataConfig) -> str:
    """The name of entry `number` of a mixture."""
    return source.name or f"{source.kind}-{number}"


MAY_CHANGE_ON_RESUME = frozenset(
    {
        "out_dir", "steps", "epochs", "micro_batch_rows", "gradient_checkpointing", "compile", "num_workers", "threads",
        "held_out", "tasks", "keep_best", "save_every_steps", "save_in_background", "keep_last", "log_every_steps",
        "trackers", "peak_flops", "save_dtype", "spike", "index_dir", "quarantine",
    }
)  # fmt: skip
"""Keys that change speed, length or output, but not what a step computes."""
