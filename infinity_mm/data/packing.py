"""Samples into rows of equal length, with exact isolation between samples and between branches.

    lengths --best_fit--> rows of samples --pack--> tensors (R, T) --model/attention.py--> who attends to whom

Legend: R rows, T positions of a row. `sample_ids` is 0 on padding and 1, 2, ... on the samples of a row;
`branch_ids` is 0 on what all branches of a sample share and 1, 2, ... on the branches.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinity_mm.data.encode import IGNORE, Encoded
from infinity_mm.errors import explain

EXCESS = (0.02, 0.05, 0.1)
"""Vision work of a row above the mean that `balanced_fit` tries to keep to, in this order."""
ROWS_FOR_BALANCE = 0.005
"""Share of additional rows that balance may cost."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch of rows, as tensors."""

    input_ids: Tensor
    """(R, T)."""
    labels: Tensor
    """(R, T); -100 where nothing is learned."""
    position_ids: Tensor
    """(R, T); restart with every sample and branch."""
    sample_ids: Tensor
    """(R, T)."""
    branch_ids: Tensor
    """(R, T)."""
    pixel_values: Tensor | None
    """(P, 3 * patch^2). Packed patches of all views in order of rows; None when no row holds an image."""
    view_shapes: Tensor | None
    """(V, S): image index in the batch, rows and columns in patches of each view, and what else its plan says."""
    views_per_row: tuple[int, ...]
    """How many of the views belong to each row."""
    ids: tuple[tuple[str, ...], ...]
    """Sample ids of each row."""
    domains: tuple[tuple[str, ...], ...]
    """The same samples' domains."""
    sources: tuple[tuple[str, ...], ...]
    """The same samples' sources."""

    @property
    def num_labels(self) -> int:
        """Supervised tokens."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.sample_ids != 0).sum())

    @property
    def num_images(self) -> int:
        """Images of all rows."""
        return 0 if self.view_shapes is None else int(self.view_shapes[-1, 0]) + 1

    def to(self, device: torch.device) -> Packed:
        """The same batch on another device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def join(batches: Sequence[Packed]) -> Packed:
    """One batch of the rows of several, in order."""
    if len(batches) == 1:
        return batches[0]
    shapes: list[Tensor] = []
    num_images = 0
    for batch in batches:
        if batch.view_shapes is not None:
            shapes.append(_renumbered(batch.view_shapes, num_images))
            num_images += batch.num_images
    pixels = [batch.pixel_values for batch in batches if batch.pixel_values is not None]
    return Packed(
        input_ids=torch.cat([batch.input_ids for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        position_ids=torch.cat([batch.position_ids for batch in batches]),
        sample_ids=torch.cat([batch.sample_ids for batch in batches]),
        branch_ids=torch.cat([batch.branch_ids for batch in batches]),
        pixel_values=torch.cat(pixels) if pixels else None,
        view_shapes=torch.cat(shapes) if shapes else None,
        views_per_row=tuple(count for batch in batches for count in batch.views_per_row),
        ids=tuple(ids for batch in batches for ids in batch.ids),
        domains=tuple(domains for batch in batches for domains in batch.domains),
        sources=tuple(sources for batch in batches for sources in batch.sources),
    )


def _renumbered(view_shapes: Tensor, difference: int | Tensor) -> Tensor:
    """A copy whose image indices, the first column, are changed by `difference`."""
    copy = view_shapes.clone()
    copy[:, 0] += difference
    return copy


def best_fit(
    lengths: Sequence[int], row_tokens: int, costs: Sequence[int] | None = None, row_cost: int | None = None
) -> list[list[int]]:
    """Indices of `lengths` by row, best fit decreasing; equal samples keep their order.

    `costs` is the vision tower's work for each sample, of which a row takes at most `row_cost`; then the samples with
    the most work come first, and those without any fill what is left. Raises UserError for a sample that no row takes.
    """
    work = costs if costs is not None and row_cost is not None else [0] * len(lengths)
    most = row_cost or 0
    rows: list[list[int]] = []
    row_work: list[int] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-work[i], -lengths[i])):
        length, cost = lengths[index], work[index]
        if length > row_tokens or cost > most:
            raise explain(
                what=f"a sample of {length} tokens does not fit a row of {row_tokens}"
                + (f", or its vision work of {cost} one of {row_cost}" if cost else ""),
                where="packing",
                fix=f"raise row_tokens to {length}, or set over_long: drop",
            )
        at = bisect.bisect_left(room, (length, -1))
        while cost and at < len(room) and row_work[room[at][1]] + cost > most:
            at += 1
        if at == len(room):
            rows.append([index])
            row_work.append(cost)
            free, row = row_tokens, len(rows) - 1
        else:
            free, row = room.pop(at)
            rows[row].append(index)
            row_work[row] += cost
        if free > length:
            bisect.insort(room, (free - length, row))
    return rows


def balanced_fit(
    lengths: Sequence[int], row_tokens: int, costs: Sequence[int], row_cost: int | None
) -> list[list[int]]:
    """Rows as full as those of `best_fit` and, as far as that allows, of equal vision work.

    No row takes more than a little above the mean work of a row; the little is the least of EXCESS that costs next to
    no rows. Where rows are equal, so are processes, whatever their number.
    """
    plain = best_fit(lengths, row_tokens, costs, row_cost)
    if not any(costs):
        return plain
    mean = sum(costs) / -(-sum(lengths) // row_tokens)
    for excess in EXCESS:
        most = max(max(costs), int(mean * (1 + excess)))
        if row_cost is not None and most >= row_cost:
            break
        rows = best_fit(lengths, row_tokens, costs, most)
        if len(rows) <= len(plain) * (1 + ROWS_FOR_BALANCE):
            return rows
    return plain


def pack(rows: Sequence[Sequence[Encoded]], row_tokens: int, pad_id: int) -> Packed:
    """Rows of encoded samples as tensors."""
    return join([_pack_row(row, row_tokens, pad_id) for row in rows])


def _pack_row(row: Sequence[Encoded], row_tokens: int, pad_id: int) -> Packed:
    """A batch of one row."""
    num_padding = row_tokens - sum(len(sample.layout) for sample in row)
    assert num_padding >= 0

    def line(values: list[list[int]], padding: int) -> Tensor:
        return torch.tensor([[value for part in values for value in part] + [padding] * num_padding])

    layouts = [sample.layout for sample in row]
    shapes: list[Tensor] = []
    num_images = 0
    for sample in row:
        if sample.view_shapes is not None:
            shapes.append(_renumbered(sample.view_shapes, num_images))
            num_images += sample.layout.num_images
    pixels = [sample.pixel_values for sample in row if sample.pixel_values is not None]
    return Packed(
        input_ids=line([layout.input_ids for layout in layouts], pad_id),
        labels=line([layout.labels for layout in layouts], IGNORE),
        position_ids=line([layout.position_ids for layout in layouts], 0),
        sample_ids=line([[n] * len(layout) for n, layout in enumerate(layouts, 1)], 0),
        branch_ids=line([layout.branch_ids for layout in layouts], 0),
        pixel_values=torch.cat(pixels) if pixels else None,
        view_shapes=torch.cat(shapes) if shapes else None,
        views_per_row=(sum(len(part) for part in shapes),),
        ids=(tuple(layout.id for layout in layouts),),
        domains=(tuple(layout.domain for layout in layouts),),
        sources=(tuple(layout.source for layout in layouts),),
    )
