"""One fine-tuning run from configuration to exported model.

config --start or resume--> model, mixture --run_steps--> checkpoints --> out_dir/model
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

import infinity_mm
from infinity_mm.config import build, to_plain
from infinity_mm.data.encode import RowEncoder
from infinity_mm.data.ledger import Ledger, account
from infinity_mm.data.loader import LoaderConfig, LoaderState, RowLoader, StepBatch
from infinity_mm.data.mixture import Mixture
from infinity_mm.data.plan import Drop, Planner
from infinity_mm.data.quarantine import Listed, append_quarantine
from infinity_mm.errors import UserError, explain
from infinity_mm.eval.asking import Answered
from infinity_mm.families import INFINITY_MM
from infinity_mm.families.base import Family
from infinity_mm.families.names import tensor_names
from infinity_mm.model.attention import SDPA_FLOAT32
from infinity_mm.model.flops import ModelSizes
from infinity_mm.training import lora, zero3
from infinity_mm.training.checkpoint import (
    TrainerState,
    Weights,
    Writer,
    checkpoints,
    gather,
    load_optimizer,
    read_state,
    refuse_other_run,
    save_adapter,
    save_checkpoint,
    save_model,
    sweep,
)
from infinity_mm.training.config import MAY_CHANGE_ON_RESUME, ScheduleConfig, SftConfig
from infinity_mm.training.guard import BadStep, Guard
from infinity_mm.training.held_out import HeldOut
from infinity_mm.training.loop import Hooks, Learner, Stop, run_steps
from infinity_mm.training.measure import Measure
from infinity_mm.training.metrics import Reporter, StepMetrics
from infinity_mm.training.mixing import build_planner, data_fingerprint, indexed, not_found, read_listed
from infinity_mm.training.monitor import everywhere, peak_flops
from infinity_mm.training.noise import EmbeddingNoise
from infinity_mm.training.optim import build_optimizer, freeze
from infinity_mm.training.schedule import lr_factor, refuse_bad_branch
from infinity_mm.training.sharding import is_sharded, num_elements, shard
from infinity_mm.training.start import Started, build_mixture, new_accelerator, start_model
from infinity_mm.training.zero3 import is_zero3


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a run left behind."""

    model_dir: Path | None
    """The exported model; None when the run was stopped early."""
    steps: int
    """Finished steps."""
    loss: float | None
    """Loss of the last step; None when nothing was left to do."""
    samples: int
    """Samples trained on."""
    images: int
    """Images trained on."""
    dropped: int
    """Samples that were planned into no row; ledger.jsonl has the fate of every sample."""


def train(config: SftConfig, *, quiet: bool = False) -> TrainResult:
    """Train, or go on with the latest complete checkpoint in `out_dir`; the same call starts and resumes."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    disable_progress_bar()  # of transformers: one line per saved file
    trackers = _trackers(config)
    _refuse_spread(config)
    accelerator = new_accelerator(
        config.precision, log_with=trackers or None, project_dir=str(config.out_dir / "trackers")
    )
    config.out_dir.mkdir(parents=True, exist_ok=True)
    mixture = build_mixture(config.data, temperature=config.mix_temperature)
    listed = read_listed(config)
    fingerprint = data_fingerprint(mixture, listed)
    started, origin = _model(config, mixture, fingerprint, accelerator)
    model, processor, family = started.model, started.processor, started.family
    encoder = family.encoder(processor)
    with accelerator.main_process_first():
        mixture = indexed(config, mixture, encoder)
    vision_cost = family.vision_cost(model.config)
    planner, total_steps = build_planner(config, mixture, encoder, vision_cost, listed)
    state = _state(config, fingerprint, total_steps, origin)
    lr_factor(config.schedule, 0, state.total_steps)  # an impossible schedule fails here, not at its end
    noise = EmbeddingNoise(model.get_input_embeddings(), config.neftune_alpha)
    wrapped, optimizer, backward = _prepare(started, config, accelerator)
    if origin is not None:
        load_optimizer(origin, model, optimizer)
    loader = _loader(planner, config, accelerator, state.loader)
    learner = Learner(
        accelerator=accelerator,
        model=wrapped,
        backward=backward,
        optimizer=optimizer,
        noise=noise,
        guard=Guard(config.spike, optimizer, state.recent_losses),
        sizes=_sizes(family, model) if config.lora is None else None,  # the formulas know no adapters
        peak_flops=_peak_flops(config, accelerator),
    )
    last: list[StepMetrics] = []
    stop = Stop()
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(background=config.save_in_background))
        reporter = ledger = None
        if accelerator.is_main_process:
            sweep(config.out_dir)
            _write_run(config, fingerprint, accelerator)
            append_quarantine(config.out_dir / "quarantine.jsonl", listed)
            ledger = Ledger(config.out_dir / "ledger.jsonl", step=state.loader.step)
            if trackers:
                _start_trackers(config, state, accelerator)
            reporter = Reporter(
                config.out_dir,
                total_steps=state.total_steps,
                first_step=state.step,
                every=config.log_every_steps,
                track=(lambda values, step: accelerator.log(values, step=step)) if trackers else None,
                quiet=quiet,
            )
            reporter.say(_greeting(config, started, mixture, state, accelerator))
            if (line := not_found(mixture, listed)) is not None:
                reporter.say(line)

        def log(metrics: StepMetrics) -> None:
            last[:] = [metrics]
            if reporter is not None:
                reporter.log(metrics)

        def skipped(step: int, problem: str, ids: list[str]) -> None:
            if reporter is not None:
                reporter.skipped(step, problem, ids)

        def answered(step: int, task: str, found: Sequence[Answered]) -> None:
            if reporter is not None:
                reporter.answered(step, task, found)

        def gathered() -> Weights:
            return gather(
                model,
                optimizer,
                keep=accelerator.is_main_process,
                copy=config.save_in_background,
                trained_only=config.lora is not None,
            )

        def save(now: TrainerState) -> None:
            writer.wait()  # before there is a second copy
            weights = gathered()
            if accelerator.is_main_process:
                writer.run(
                    partial(
                        save_checkpoint,
                        config.out_dir,
                        weights=weights,
                        model=model,
                        adapter=started.adapter,
                        processor=processor,
                        state=now,
                        keep_last=config.keep_last,
                        keep_best=config.keep_best,
                    )
                )
            if not config.save_in_background:
                accelerator.wait_for_everyone()

        hooks = Hooks(
            log=log,
            fates=partial(_write_fates, config, ledger, accelerator),
            save=save,
            skipped=skipped,
            measure=Measure(
                config,
                accelerator,
                model,
                wrapped,
                processor,
                noise,
                total_steps=state.total_steps,
                write=encoder.messages,
                held_out_loss=_held_out(config, encoder, vision_cost, learner),
                answered=answered,
            ),
        )
        stack.enter_context(stop.on_sigterm())
        state = run_steps(learner, loader, state, config, hooks, stop)
        writer.wait()
        model_dir = config.out_dir / "model" if state.step == state.total_steps else None
        if model_dir is not None:
            weights = gathered()
            if accelerator.is_main_process:
                _save_final(model_dir, weights, started, config)
        accelerator.wait_for_everyone()
        if reporter is not None and ledger is not None:
            reporter.say(account(ledger.path).line())
            reporter.say(
                f"model: {model_dir}" if model_dir else f"stopped at step {state.step}; run again to go on"
            )
    for tracker in accelerator.trackers:
        tracker.finish()
    return TrainResult(
        model_dir=model_dir,
        steps=state.step,
        loss=last[0].loss if last else None,
        samples=state.samples,
        images=state.images,
        dropped=state.dropped,
    )


def _save_final(target: Path, weights: Weights, started: Started, config: SftConfig) -> None:
    """The whole model under the names of the checkpoint it came from, or its adapters where they are not merged."""
    model, tensors, processor = started.model, weights.model, started.processor
    base = Path(config.model.path) if config.model.path is not None else None
    if config.lora is not None:
        assert base is not None
        if not config.lora.merge:
            save_adapter(target, tensors=tensors, adapter=started.adapter, processor=processor)
            return
        model = lora.merged(started.family, base, checkpoints(config.out_dir)[-1])
        tensors = dict(model.requires_grad_(False).state_dict(keep_vars=True))
    # Our own model has names of its own, also where it was made of released weights.
    names = tensor_names(base) if base is not None and started.family is not INFINITY_MM else set()
    save_model(
        target, tensors=tensors, model=model, processor=processor, dtype=config.save_dtype, names=names
    )


def _prepare(
    started: Started, config: SftConfig, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[Tensor], object]]:
    """Freeze parts, choose the attention kernel, compile, move to the device; the model as processes share it, its
    optimiser and its backward pass."""
    model, family = started.model, started.family
    freeze(model, config, family.parts, family.idle(model.config))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.model.attention is not None:
        model.set_attn_implementation(config.model.attention)
    elif accelerator.device.type == "cpu":
        model.set_attn_implementation(SDPA_FLOAT32)  # 1.2 to 1.5 times the speed, see that file
    if config.compile:
        for module in model.modules():
            if type(module).__name__ in (model._no_split_modules or ()):
                module.compile()  # in place: parameters keep their names
    module, bf16 = family.trainable(model), config.precision == "bf16"
    if is_zero3():
        engine, optimizer = zero3.start(
            module, build_optimizer(model, config, family.parts), accelerator, bf16=bf16
        )
        return engine, optimizer, engine.backward
    if is_sharded():
        shard(module, accelerator, bf16=bf16)
    else:
        model.to(accelerator.device)
        module = accelerator.prepare(module)
    return module, build_optimizer(model, config, family.parts), accelerator.backward


def _refuse_spread(config: SftConfig) -> None:
    """What cannot be had with parameters spread over processes."""
    if config.optimizer == "muon" and (is_sharded() or is_zero3()):
        raise explain(
            what="Muon needs whole matrices, FSDP and ZeRO-3 spread them over processes",
            where="optimizer: muon with such a launch configuration",
            fix="set optimizer: adamw, or launch with configs/accelerate/8gpu_bf16.yaml",
        )
    if is_sharded() and config.lora is not None and config.lora.base == "nf4":
        raise explain(
            what="lora.base: nf4 does not work with FSDP: four-bit weights are no tensors it can spread",
            where="the training configuration, launched with configs/accelerate/fsdp2.yaml",
            fix="use base: bfloat16, or launch with configs/accelerate/8gpu_bf16.yaml",
        )
    if is_zero3():
        zero3.refuse_other_stages(os.environ)
        if config.compile or (config.lora is not None and config.lora.base == "nf4"):
            raise explain(
                what="compile and lora.base: nf4 do not work with DeepSpeed, which changes layers in place",
                where="the training configuration, launched with configs/accelerate/zero3.yaml",
                fix="leave them out, or launch with configs/accelerate/8gpu_bf16.yaml",
            )


def _loader(planner: Planner, config: SftConfig, accelerator: Accelerator, state: LoaderState) -> RowLoader:
    return RowLoader(
        planner,
        LoaderConfig(
            global_batch_rows=config.global_batch_rows,
            micro_batch_rows=config.micro_batch_rows,
            num_workers=config.num_workers,
        ),
        state=state,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def _held_out(
    config: SftConfig, encoder: RowEncoder, vision_cost: Callable[[int, int], int], learner: Learner
) -> Callable[[], float]:
    """Measures; the rows are read when it is first asked."""
    made: list[HeldOut] = []

    def measure() -> float:
        assert config.held_out is not None
        if not made:
            one_step = replace(
                config,
                data=config.held_out.data,
                global_batch_rows=config.held_out.rows,
                steps=1,
                epochs=None,
                mix_by_phase=(),
                num_workers=0,
            )
            with learner.accelerator.main_process_first():
                mixture = indexed(one_step, build_mixture(one_step.data), encoder)
            planner, _ = build_planner(one_step, mixture, encoder, vision_cost, ())
            loader = _loader(planner, one_step, learner.accelerator, LoaderState())
            made.append(HeldOut(loader, config, learner.noise))
        return made[0].loss(learner.accelerator, learner.model)

    return measure


def _sizes(family: Family, model: nn.Module) -> ModelSizes | None:
    """For counting operations; a model without a formula is trained all the same."""
    try:
        return family.sizes(model.config)
    except UserError:
        return None


def _peak_flops(config: SftConfig, accelerator: Accelerator) -> float | None:
    """Of all processes' devices together; the table is of bfloat16."""
    one = config.peak_flops
    if one is None and accelerator.device.type == "cuda" and config.precision == "bf16":
        one = peak_flops(torch.cuda.get_device_name(accelerator.device))
    return None if one is None else one * accelerator.num_processes


def _trackers(config: SftConfig) -> list[str]:
    """Whom to report to. accelerate leaves out a tracker whose package is missing; whoever named it is told."""
    if config.trackers is None:
        return ["tensorboard"] if find_spec("tensorboard") is not None else []
    for name in config.trackers:
        if find_spec(name) is None:
            raise explain(
                what=f"the package {name} is not installed",
                where="trackers",
                fix=f"pip install {name}, or take it out of the list",
            )
    return list(config.trackers)


def _start_trackers(config: SftConfig, state: TrainerState, accelerator: Accelerator) -> None:
    """With the whole configuration, under flat names, and without the steps that a resumed run does again."""
    values: dict[str, Any] = {}
    for key, value in to_plain(config).items():
        values |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    plain = {k: v if isinstance(v, (bool, int, float, str)) else json.dumps(v) for k, v in values.items()}
    purge = {"tensorboard": {"purge_step": state.step + 1}}
    accelerator.init_trackers(config.out_dir.name, config=plain, init_kwargs=purge)


def _write_fates(
    config: SftConfig,
    ledger: Ledger | None,
    accelerator: Accelerator,
    batch: StepBatch,
    bad: BadStep | None,
) -> None:
    """What became of every sample of a step; each process knows what spoiled in its own rows, the main one writes."""
    not_learned: list[Drop] = list(batch.spoiled)
    if accelerator.num_processes > 1:
        not_learned = gather_object(not_learned)
    if bad is not None:
        not_learned += bad.fates(batch.planned, not_learned, quarantine=config.spike.quarantine)
    if ledger is not None:
        ledger.write(batch, not_learned)
        found = [drop for drop in (*batch.dropped, *not_learned) if drop.fate == "quarantined"]
        if found:
            listed = [Listed(drop.source, drop.id, drop.reason) for drop in found]
            append_quarantine(config.out_dir / "quarantine.jsonl", listed)


def _model(
    config: SftConfig, mixture: Mixture, fingerprint: str, accelerator: Accelerator
) -> tuple[Started, Path | None]:
    """What is trained, and the checkpoint it goes on from."""
    saved = checkpoints(config.out_dir)
    seen = everywhere(accelerator, saved[-1].name if saved else "none")
    if len(set(seen)) > 1:
        raise explain(
            what=f"the processes see different last checkpoints: {', '.join(seen)}",
            where=str(config.out_dir),
            fix="put out_dir on a disk that all machines share; if it is on one, try again",
        )
    origin = saved[-1] if saved else config.schedule.branch_from
    if saved:
        refuse_other_run(read_state(saved[-1]), to_plain(config), fingerprint, MAY_CHANGE_ON_RESUME)
    return start_model(config.model, mixture, lora=config.lora, resumed=origin), origin


def _state(config: SftConfig, fingerprint: str, total_steps: int, origin: Path | None) -> TrainerState:
    """Where the run starts."""
    plain: dict[str, Any] = to_plain(config)
    if origin is None:
        return TrainerState(
            step=0,
            loader=LoaderState(),
            total_steps=total_steps,
            samples=0,
            tokens=0,
            images=0,
            dropped=0,
            data_fingerprint=fingerprint,
            config=plain,
        )
    before = read_state(origin)
    now = replace(before, total_steps=total_steps, config=plain, data_fingerprint=fingerprint)
    if origin != config.schedule.branch_from:
        return now
    same_data = before.config["data"] == plain["data"]
    refuse_other_run(
        before,
        plain,
        fingerprint if same_data else before.data_fingerprint,
        MAY_CHANGE_ON_RESUME | {"schedule", "model", "data", "mix_by_phase"},
    )
    stable = build(ScheduleConfig, before.config["schedule"])
    refuse_bad_branch(stable, before.total_steps, config.schedule, total_steps, before.step)
    # Other data begins at its start.
    return now if same_data else replace(now, loader=LoaderState(step=before.loader.step))


def _write_run(config: SftConfig, fingerprint: str, accelerator: Accelerator) -> None:
    """run.json: enough to do the run again."""
    packages = ["torch", "transformers", "accelerate", "tokenizers", "safetensors", "pillow", "pyarrow"]
    if is_zero3():
        packages.append("deepspeed")
    run = {
        "config": to_plain(config),
        "data_fingerprint": fingerprint,
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "python": platform.python_version(),
        "versions": {"infinity-mm": infinity_mm.__version__, **{name: version(name) for name in packages}},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (config.out_dir / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")


def _greeting(
    config: SftConfig,
    started: Started,
    mixture: Mixture,
    state: TrainerState,
    accelerator: Accelerator,
) -> str:
    family = started.family
    trained = sum(num_elements(p) for p in started.model.parameters() if p.requires_grad)
    rows = "packed rows" if family.packs else "one sample a row (packing is not proven for this family)"
    return (
        f"{'resuming at step ' + str(state.step) if state.step else 'starting'}: {state.total_steps} steps of "
        f"{config.global_batch_rows} rows x {config.row_tokens} tokens, {len(mixture)} samples an epoch, "
        f"{family.model_type}, {rows}, "
        f"{trained / 1e6:.2f}M trained parameters, {config.precision}, {accelerator.num_processes} process(es) "
        f"on {accelerator.device}"
    )
