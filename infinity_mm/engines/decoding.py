"""The decode loop of our own model: shared prefixes, in-place cache, finished rows leave early, choices in one pass.

    prefixes (system prompt, images) --prefill once, kept by the caller--> Prefix
    Row(prefix, suffix) --one forward--> cache --token by token--> text
    Row(prefix, suffix, choices) --one forward, a branch per choice--> log-probabilities

Sequences are padded on the right; real positions never look at padding, so its content does not matter.
Legend: B rows, S positions of a forward, P positions of the longest prefix, K positions that can be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from infinity_mm.engines.kv_cache import Prefix, RoomyCache, take_prefixes
from infinity_mm.engines.sampling import Sampler, next_tokens


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sequence to go on with."""

    prefix: Prefix
    """What `Decoder.prefill` returned for the ids before `suffix`."""
    suffix: list[int]
    """The rest of the prompt, at least one id."""
    max_new_tokens: int = 0
    sampler: Sampler | None = None
    """Needed by `generate`."""
    choices: list[list[int]] = field(default_factory=list)
    """Ids of each continuation with its end token; needed by `score`."""

    @property
    def num_prompt_tokens(self) -> int:
        """Positions before the reply."""
        return self.prefix.shape[2] + len(self.suffix)


@final
class Decoder:
    """Runs one `InfinityMMForConditionalGeneration` with full attention in all layers."""

    def __init__(self, model: Any, eos_ids: frozenset[int]) -> None:
        self._model = model
        self._language_model = model.get_decoder()
        self._embed = model.get_input_embeddings()
        self._eos_ids = eos_ids
        self._device: torch.device = model.device

    def prefill(self, ids: Sequence[Sequence[int]], features: Sequence[Float[Tensor, "_ E"]]) -> list[Prefix]:
        """Keys and values of whole sequences; `features` are those of all their images, in reading order."""
        if not any(ids):
            return [self.empty_prefix() for _ in ids]
        out = self._model.model(
            input_ids=self._padded(ids), image_features=list(features) or None, use_cache=True
        )
        return take_prefixes(out.past_key_values, [len(row) for row in ids])

    def empty_prefix(self) -> Prefix:
        """For a prompt without images."""
        config = self._model.config.text_config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (2 * config.num_hidden_layers, config.num_key_value_heads, 0, width)
        return torch.zeros(shape, dtype=self._model.dtype, device=self._device)

    def generate(self, rows: Sequence[Row]) -> list[tuple[list[int], Literal["stop", "length"]]]:
        """New ids of every row, without the end token."""
        if not rows:
            return []
        samplers = [_sampler(row) for row in rows]
        max_steps = max(row.max_new_tokens for row in rows)
        cache = RoomyCache([row.prefix for row in rows], room=max(len(r.suffix) for r in rows) + max_steps)
        seen = self._visible(rows, cache.length, room=max_steps)
        hidden = self._forward_suffixes(rows, [row.suffix for row in rows], cache, seen)
        last = torch.tensor([len(row.suffix) - 1 for row in rows], device=self._device)
        logits = self._logits(hidden[torch.arange(len(rows), device=self._device), last])
        positions = torch.tensor([row.num_prompt_tokens for row in rows], device=self._device)

        out: list[list[int]] = [[] for _ in rows]
        reasons: list[Literal["stop", "length"]] = ["length" for _ in rows]
        slots = list(range(len(rows)))
        running = [row.max_new_tokens > 0 for row in rows]
        for step in range(max_steps):
            tokens = next_tokens(logits, [samplers[row] for row in slots])
            for row, token in zip(slots, tokens.tolist(), strict=True):
                if not running[row]:
                    continue
                if token in self._eos_ids:
                    reasons[row], running[row] = "stop", False
                    continue
                out[row].append(token)
                running[row] = len(out[row]) < rows[row].max_new_tokens
            alive = [slot for slot, row in enumerate(slots) if running[row]]
            if not alive:
                break
            if 4 * len(alive) <= 3 * len(slots):  # copying the cache for every row that ends would cost more
                cache.keep_rows(alive)
                seen, tokens, positions = seen[alive], tokens[alive], positions[alive]
                slots = [slots[slot] for slot in alive]
            num_keys = seen.shape[1] - max_steps + step + 1
            hidden = self._hidden(
                tokens[:, None], (positions + step)[:, None], seen[:, None, None, :num_keys], cache
            )
            logits = self._logits(hidden[:, 0])
        return list(zip(out, reasons, strict=True))

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Log-probability of each row's choices as its continuation, from one forward over branches."""
        if not rows:
            return []
        blocks = [row.suffix + [id_ for choice in row.choices for id_ in choice[:-1]] for row in rows]
        cache = RoomyCache([row.prefix for row in rows], room=max(map(len, blocks)))
        seen = self._visible(rows, cache.length, room=0)[:, : cache.length]
        hidden = self._forward_branches(rows, blocks, cache, seen)
        return [self._row_scores(row, hidden[i]) for i, row in enumerate(rows)]

    def _row_scores(self, row: Row, hidden: Float[Tensor, "S E"]) -> list[float]:
        logprobs = self._logits(hidden[len(row.suffix) - 1 :]).log_softmax(-1)
        scores: list[float] = []
        start = 0
        for choice in row.choices:
            at = [0, *range(start + 1, start + len(choice))]
            scores.append(float(logprobs[at, choice].sum()))
            start += len(choice) - 1
        return scores

    def _forward_suffixes(
        self, rows: Sequence[Row], blocks: Sequence[list[int]], cache: RoomyCache, seen: Bool[Tensor, "B K"]
    ) -> Float[Tensor, "B S E"]:
        ids = self._padded(blocks)
        size = ids.shape[1]
        starts = torch.tensor([row.prefix.shape[2] for row in rows], device=self._device)
        positions = starts[:, None] + torch.arange(size, device=self._device)
        causal = torch.ones(size, size, dtype=torch.bool, device=self._device).tril()
        before = torch.ones(size, cache.length, dtype=torch.bool, device=self._device)
        mask = seen[:, None, None, : cache.length + size] & torch.cat([before, causal], dim=1)
        return self._hidden(ids, positions, mask, cache)

    def _forward_branches(
        self, rows: Sequence[Row], blocks: Sequence[list[int]], cache: RoomyCache, seen: Bool[Tensor, "B P"]
    ) -> Float[Tensor, "B S E"]:
        """A branch sees the prompt and itself, and starts at the position after the prompt."""
        ids = self._padded(blocks)
        branches, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            row_branches, row_positions = [0] * len(row.suffix), list(range(len(row.suffix)))
            for number, choice in enumerate(row.choices, 1):
                row_branches += [number] * (len(choice) - 1)
                row_positions += range(len(row.suffix), len(row.suffix) + len(choice) - 1)
            branches[i, : len(row_branches)] = torch.tensor(row_branches)
            positions[i, : len(row_positions)] = torch.tensor(row_positions) + row.prefix.shape[2]
        size = ids.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=self._device).tril()
        own = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
        mask = torch.cat([seen[:, None, :].expand(-1, size, -1), own & causal], dim=2)
        return self._hidden(ids, positions, mask[:, None], cache)

    def _hidden(
        self,
        ids: Int[Tensor, "B S"],
        positions: Int[Tensor, "B S"],
        mask: Bool[Tensor, "B 1 S K"],
        cache: RoomyCache,
    ) -> Float[Tensor, "B S E"]:
        out = self._language_model(
            inputs_embeds=self._embed(ids),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state

    def _logits(self, hidden: Float[Tensor, "n E"]) -> Float[Tensor, "n vocab"]:
        logits = self._model.lm_head(hidden).float()
        if logits.isnan().any():
            raise ArithmeticError("the model's logits are not numbers")
        return logits

    def _visible(self, rows: Sequence[Row], num_prefix: int, *, room: int) -> Bool[Tensor, "B K"]:
        """Which columns hold a row's prompt; the columns of new tokens are all visible."""
        num_suffix = max(len(row.suffix) for row in rows)
        seen = torch.ones(len(rows), num_prefix + num_suffix + room, dtype=torch.bool)
        for i, row in enumerate(rows):
            seen[i, row.prefix.shape[2] : num_prefix] = False
            seen[i, num_prefix + len(row.suffix) : num_prefix + num_suffix] = False
        return seen.to(self._device)

    def _padded(self, ids: Sequence[Sequence[int]]) -> Int[Tensor, "B S"]:
        out = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        for i, row in enumerate(ids):
            out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        return out.to(self._device)


def _sampler(row: Row) -> Sampler:
    assert row.sampler is not None
    return row.sampler
