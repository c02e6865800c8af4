"""Several sources as one, by index.

sources with weight, cap, temperature --count--> one index range per epoch --locate--> (source, index in it)
phases --by step--> the mixture that holds
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infinity_mm.data.conversation import Conversation, ConversationSource, Outline, Turns
from infinity_mm.data.index import StoredIndex
from infinity_mm.data.permutation import permute
from infinity_mm.errors import explain
from infinity_mm.record import digest, seed_for


@dataclass(frozen=True, kw_only=True)
class WeightedSource:
    """One source, or one domain of it, and how often it is seen."""

    source: ConversationSource
    name: str = ""
    """What ledger, quarantine and metrics call the source, whether or not it is cut into domains."""
    domain: str | None = None
    """The domain of the source that this is; None: all of it."""
    weight: float = 1.0
    """Times each of its samples is seen in one epoch; 0.5 shows one half in one epoch, the other in the next.
    0: none, until a later phase gives it another weight."""
    cap: int | None = None
    """Most samples of the source in one epoch, all its domains together; the next epoch goes on with others."""
    index: StoredIndex | None = None
    """Its measurements, where they were made before."""
    only: NDArray[np.int64] | None = None
    """The samples that belong to it; None: all."""

    @property
    def size(self) -> int:
        """How many different samples it has."""
        return len(self.source) if self.only is None else len(self.only)

    @property
    def label(self) -> str:
        """Tells the parts of a mixture apart."""
        return self.name if self.domain is None else f"{self.name}/{self.domain}"


class Mixture:
    """All sources behind one index range of `len(mixture)` samples per epoch."""

    def __init__(self, parts: Sequence[WeightedSource], *, temperature: float = 1.0, phase: int = 0) -> None:
        """`temperature`: shares are weight * size ** (1 / temperature); more than 1 evens sizes out.

        `phase`: in every phase a part of a source is made of other samples.
        """
        if temperature <= 0:
            raise explain(
                what=f"mix_temperature={temperature}",
                where="training configuration",
                fix="give a number above 0; 1 keeps the shares of the sources",
            )
        self.parts = tuple(parts)
        self.temperature, self.phase = temperature, phase
        self.samples_per_epoch = _counts(parts, temperature)
        empty = [i for i, count in enumerate(self.samples_per_epoch) if count < 1 and parts[i].weight > 0]
        if not sum(self.samples_per_epoch) or empty:
            raise explain(
                what=f"data source `{parts[empty[0]].label}` gives no sample in an epoch"
                if empty
                else "there is no data source with a weight above 0",
                where="YAML section `data`",
                fix="give each source at least one sample and a weight that shows at least one per epoch",
            )
        self._ends = list(itertools.accumulate(self.samples_per_epoch))

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._ends[-1]

    @property
    def fingerprint(self) -> str:
        """Changes with any source, weight, cap, or the temperature."""
        return digest(
            str(self.temperature),
            *(
                f"{p.label}/{p.source.fingerprint}/{p.source.turns}/{p.weight}/{p.cap}/{p.size}"
                for p in self.parts
            ),
        )

    def locate(self, epoch: int, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(part, index in its source) of mixture indices; later epochs go on where a part of a source ended.

        Which samples are seen together in an epoch is random: a source may be sorted.
        """
        numbers = np.searchsorted(self._ends, indices, side="right")
        inner = np.empty_like(indices)
        for number in np.unique(numbers).tolist():
            part, count = self.parts[number], self.samples_per_epoch[number]
            here = numbers == number
            offsets = indices[here] - (self._ends[number] - count)
            places = (epoch * count + offsets) % part.size
            drawn = part.label if self.phase == 0 else f"{part.label}, phase {self.phase}"
            own = permute(places, part.size, seed_for(0, "part-of-a-source", drawn))
            inner[here] = own if part.only is None else part.only[own]
        return numbers, inner

    def get(self, epoch: int, index: int) -> tuple[Conversation, Turns]:
        """The conversation and how its exchanges see each other."""
        source, inner = self._find(epoch, index)
        return source[inner], source.turns

    def outline(self, epoch: int, index: int) -> Outline:
        """Its messages and image sizes."""
        source, inner = self._find(epoch, index)
        return source.outline(inner)

    def _find(self, epoch: int, index: int) -> tuple[ConversationSource, int]:
        numbers, inner = self.locate(epoch, np.array([index]))
        return self.parts[int(numbers[0])].source, int(inner[0])


def _counts(parts: Sequence[WeightedSource], temperature: float) -> list[int]:
    """Samples of each part in one epoch. The temperature keeps the length of the epoch, caps shorten it."""
    shares = [part.weight * part.size ** (1 / temperature) for part in parts]
    length = sum(part.weight * part.size for part in parts)
    scale = length / sum(shares) if sum(shares) else 0.0
    counts = [round(share * scale) for share in shares]
    together: dict[int | str, list[int]] = {}
    for number, part in enumerate(parts):
        together.setdefault(number if part.domain is None else part.name, []).append(number)
    for numbers in together.values():
        cap = parts[numbers[0]].cap
        if cap is not None and sum(counts[n] for n in numbers) > cap:
            for number, count in zip(numbers, _shorten([counts[n] for n in numbers], cap)):
                counts[number] = count
    return counts


def _shorten(counts: Sequence[int], most: int) -> list[int]:
    """So many in all, in proportion; none loses its last one while others have more."""
    total = sum(counts)
    shorter = [min(n, max(1, n * most // total)) for n in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: -(counts[i] * most % total))
    for i in by_remainder[: max(0, most - sum(shorter))]:
        shorter[i] += 1
    while sum(shorter) > most:
        shorter[shorter.index(max(shorter))] -= 1
    return shorter


def by_domain(part: WeightedSource, weights: dict[str, float]) -> list[WeightedSource]:
    """One part per domain of a source, its weight multiplied by that of the domain (1 for those not named)."""
    if part.index is None:
        raise explain(
            what=f"data source `{part.name}` has weights by domain, but nobody knows its samples' domains yet",
            where="YAML section `data`, `domains`",
            fix="set index_dir: domains are read into the index",
        )
    names, numbers = np.unique(np.array(part.index.domains()), return_inverse=True)
    if unknown := sorted(set(weights) - set(names.tolist())):
        raise explain(
            what=f"data source `{part.name}` has no domain {', '.join(unknown)}",
            where="YAML section `data`, `domains`",
            fix=f"its domains are {', '.join(names.tolist()[:20])}",
        )
    return [
        WeightedSource(
            source=part.source,
            name=part.name,
            domain=name,
            weight=part.weight * weights.get(name, 1.0),
            cap=part.cap,
            index=part.index,
            only=np.flatnonzero(numbers == number),
        )
        for number, name in enumerate(names.tolist())
        if weights.get(name, 1.0) > 0
    ]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A mixture and the optimiser step from which it is used."""

    from_step: int
    mixture: Mixture


def check_phases(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases, if the first begins at step 0 and each later than the one before; raises UserError."""
    starts = [phase.from_step for phase in phases]
    if starts[:1] != [0] or any(a >= b for a, b in itertools.pairwise(starts)):
        raise explain(
            what=f"the phases of the mixture start at steps {starts}",
            where="mix_by_phase",
            fix="start each later than the one before, within the run; the mixture of `data` holds before the first",
        )
    return tuple(phases)


def phase_at(phases: Sequence[Phase], step: int) -> int:
    """Number of the phase that optimiser step `step` (from 0) belongs to."""
    return bisect.bisect_right([phase.from_step for phase in phases], step) - 1
