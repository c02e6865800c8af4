"""Log-probabilities of given choices from a model that only continues prompts: one token at each fork.

yes   = 5 9        fork ()  : 5 or 6                     a call whose one new token is compared at these ids
no    = 6 9        fork (6,): 9 or 8                     a call with token 6 put after the prompt
never = 6 8 9                                            9 ends a reply

Tokens between forks are certain, because nothing else is allowed there. So the probabilities are those with which a
reply held to the choices would be drawn, and sum to one; a long choice does not lose by its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Ids = tuple[int, ...]


def forks(choices: Sequence[Ids]) -> dict[Ids, Ids]:
    """Beginning -> the tokens that may follow, where there are several; the shortest beginning first."""
    following: dict[Ids, dict[int, None]] = {}
    for ids in choices:
        for place, token in enumerate(ids):
            following.setdefault(ids[:place], {})[token] = None
    several = {begin: tuple(tokens) for begin, tokens in following.items() if len(tokens) > 1}
    return dict(sorted(several.items(), key=lambda item: len(item[0])))


def choice_logprobs(choices: Sequence[Ids], at_fork: Mapping[Ids, Mapping[int, float]]) -> list[float]:
    """One per choice, from the log-probability of every token at every fork."""
    totals = {begin: _log_sum(list(logprobs.values())) for begin, logprobs in at_fork.items()}
    return [
        sum(
            at_fork[ids[:place]][token] - totals[ids[:place]]
            for place, token in enumerate(ids)
            if ids[:place] in at_fork
        )
        for ids in choices
    ]


def _log_sum(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))
