"""Several sources as one, by index.

sources with weights --count--> one index range per epoch --locate--> (source, index in it) --> conversation
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from infinity_mm.data.conversation import Conversation, ConversationSource, Turns
from infinity_mm.errors import explain
from infinity_mm.record import digest


@dataclass(frozen=True, kw_only=True)
class WeightedSource:
    """One source and how often it is seen."""

    source: ConversationSource
    weight: float = 1.0
    """Times each of its samples is seen in one epoch; 0.5 shows one half in one epoch, the other in the next."""

    cap: int | None = None
    """Most samples of it in one epoch; None: no limit."""

    @property
    def samples_per_epoch(self) -> int:
        """How many samples of this source one epoch holds."""
        number = round(self.weight * len(self.source))
        return number if self.cap is None else min(number, self.cap)


class Mixture:
    """All sources behind one index range of `len(mixture)` samples per epoch."""

    def __init__(self, parts: Sequence[WeightedSource]) -> None:
        empty = [i for i, part in enumerate(parts) if part.samples_per_epoch < 1]
        if not parts or empty:
            raise explain(
                what=f"data source {empty[0]} gives no sample in an epoch"
                if empty
                else "there is no data source",
                where="YAML section `data`",
                fix="give each source at least one sample and a weight that shows at least one per epoch",
            )
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(part.samples_per_epoch for part in parts))

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._ends[-1]

    @property
    def fingerprint(self) -> str:
        """Changes with any source or weight."""
        return digest(
            *(
                f"{part.source.fingerprint}/{part.source.turns}/{part.weight}/{part.cap}"
                for part in self.parts
            )
        )

    def locate(self, epoch: int, index: int) -> tuple[int, int]:
        """(source number, index in that source); later epochs go on where the source stopped."""
        number = bisect.bisect_right(self._ends, index)
        part = self.parts[number]
        offset = index - (self._ends[number] - part.samples_per_epoch)
        return number, (epoch * part.samples_per_epoch + offset) % len(part.source)

    def get(self, epoch: int, index: int) -> tuple[Conversation, Turns]:
        """The conversation and how its exchanges see each other."""
        number, inner = self.locate(epoch, index)
        source = self.parts[number].source
        return source[inner], source.turns
