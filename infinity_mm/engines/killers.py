"""Pictures that may have brought a server down that cannot be restarted from here, and must not be sent on and on.

the server died over it, twice --> asked alone --died again--> a killer, never sent again
                                              --answered--> harmless

A server that is stopped loses everything in flight as well, and a bad network loses what it likes. So two losses make a
picture a suspect and no more; it is condemned when it was alone, the server was there before and gone afterwards, and
other calls had been answered since the first loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from infinity_mm.engines.guard import Picture

_SUSPECT = 2
"""Losses after which a picture is asked alone."""


@dataclass(slots=True)
class _Losses:
    first_at: float
    last_at: float
    number: int = 1


@final
class Killers:
    """What one worker knows about the pictures it has sent; times are of one clock."""

    def __init__(self) -> None:
        self._losses: dict[Picture, _Losses] = {}
        self._killers: set[Picture] = set()
        self._answered_at = -math.inf

    def __contains__(self, picture: Picture) -> bool:
        """Whether it is known to kill."""
        return picture in self._killers

    def is_suspect(self, picture: Picture) -> bool:
        """Whether it is to be asked alone."""
        losses = self._losses.get(picture)
        return losses is not None and losses.number >= _SUSPECT

    def answered(self, picture: Picture, *, now: float) -> None:
        """A call about it came back, so it does not kill."""
        self._losses.pop(picture, None)
        self._answered_at = now

    def lost(self, picture: Picture, *, sent_at: float, now: float) -> None:
        """A server may have died over it; calls that were in flight together count as one."""
        losses = self._losses.get(picture)
        if losses is None:
            self._losses[picture] = _Losses(now, now)
        elif sent_at > losses.last_at:
            losses.number += 1
            losses.last_at = now

    def died_alone(self, picture: Picture) -> bool:
        """A server died over a suspect that was alone; whether that makes it a killer."""
        losses = self._losses[picture]
        if self._answered_at <= losses.first_at:
            return False
        self._killers.add(picture)
        del self._losses[picture]
        return True
