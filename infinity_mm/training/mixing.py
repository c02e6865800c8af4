"""From configuration to a plan of rows: index, quarantine, domains, phases.

mixture --index--> measured sources --weights of each phase--> Planner, number of steps
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from infinity_mm.data.encode import RowEncoder
from infinity_mm.data.index import build_index
from infinity_mm.data.loader import count_rows
from infinity_mm.data.mixture import Mixture, Phase, WeightedSource, by_domain, check_phases
from infinity_mm.data.plan import PlanConfig, Planner
from infinity_mm.data.quarantine import Listed, Quarantine, read_quarantine
from infinity_mm.errors import explain
from infinity_mm.record import digest
from infinity_mm.training.config import PhaseConfig, SftConfig
from infinity_mm.training.schedule import decay_steps


def read_listed(config: SftConfig) -> list[Listed]:
    """The quarantine list that the run is given."""
    if config.quarantine is None:
        return []
    if config.quarantine.resolve() == (config.out_dir / "quarantine.jsonl").resolve():
        raise explain(
            what="the run would add to the list that it is given",
            where="quarantine (training configuration)",
            fix="give a copy of the list, or a new out_dir: what a run leaves out may not change while it lasts",
        )
    listed = read_quarantine(config.quarantine)
    unnamed = Counter(source.kind for source in config.data if source.name is None)
    by_place = {
        f"{kind}-{n}" for kind, count in unnamed.items() if count > 1 for n in range(len(config.data))
    }
    if meant := sorted(by_place & {entry.source for entry in listed}):
        raise explain(
            what=f"the list names {', '.join(meant)}, a name by place in `data`, and several sources have such names",
            where=str(config.quarantine),
            fix="give the sources names (`name:`) and write them into the list: in another order other samples "
            "would be left out",
        )
    return listed


def not_found(mixture: Mixture, listed: Sequence[Listed]) -> str | None:
    """A line about listed sources that the data does not have; None where it has all."""
    counts = Counter(entry.source for entry in listed)
    unknown = sorted(counts.keys() - {part.name for part in mixture.parts})
    if not unknown:
        return None
    return (
        f"WARNING: {sum(counts[name] for name in unknown)} of {len(listed)} entries of the quarantine list "
        f"leave nothing out: `data` has no source {', '.join(unknown)}"
    )


def data_fingerprint(mixture: Mixture, listed: Sequence[Listed]) -> str:
    """Changes with the sources and with the samples left out."""
    return digest(mixture.fingerprint, Quarantine(listed).fingerprint)


def indexed(config: SftConfig, mixture: Mixture, encoder: RowEncoder) -> Mixture:
    """The mixture with its sources measured, if there is a folder to keep that in."""
    if config.index_dir is None:
        return mixture
    parts = [
        replace(
            part, index=build_index(part.source, encoder, config.index_dir, num_workers=config.num_workers)
        )
        for part in mixture.parts
    ]
    return Mixture(parts, temperature=mixture.temperature)


def build_planner(
    config: SftConfig,
    mixture: Mixture,
    encoder: RowEncoder,
    vision_cost: Callable[[int, int], int],
    listed: Sequence[Listed],
) -> tuple[Planner, int]:
    """The planner of all phases, and the steps of the run."""
    gflops = config.row_vision_gflops
    plan = PlanConfig(
        row_tokens=config.row_tokens,
        row_vision=None if gflops is None else round(gflops * 1e9),
        window=config.window,
        over_long=config.over_long,
        seed=config.seed,
    )
    first = Phase(from_step=0, mixture=_weighted(config, mixture, {}))
    planner = Planner([first], encoder, plan, vision_cost=vision_cost, quarantine=Quarantine(listed))
    total_steps = config.steps
    if total_steps is None:
        assert config.epochs is not None
        rows = config.epochs * count_rows(planner, config.num_workers)
        total_steps = max(1, round(rows / config.global_batch_rows))
    later = [
        Phase(
            from_step=_start(phase, config, total_steps),
            mixture=_weighted(config, mixture, phase.weights, number),
        )
        for number, phase in enumerate(config.mix_by_phase, 1)
    ]
    planner.phases = check_phases([first, *later])
    return planner, total_steps


def _start(phase: PhaseConfig, config: SftConfig, total_steps: int) -> int:
    """First step of a phase."""
    if phase.start != "decay":
        return phase.start
    if config.schedule.name != "wsd":
        raise explain(
            what=f"a phase starts with the decay, which the schedule `{config.schedule.name}` does not have",
            where="mix_by_phase",
            fix="use schedule.name: wsd, or give the step",
        )
    return total_steps - decay_steps(config.schedule, total_steps)


def _weighted(config: SftConfig, mixture: Mixture, weights: dict[str, float], phase: int = 0) -> Mixture:
    """The sources with the weights of one phase, cut into domains where those have weights."""
    parts: list[WeightedSource] = []
    for part, data in zip(mixture.parts, config.data, strict=True):
        part = replace(part, weight=weights.get(part.name, data.weight))
        parts += by_domain(part, data.domains) if data.domains else [part]
    return Mixture(parts, temperature=mixture.temperature, phase=phase)
