"""A resampler whose queries stay in their place: the view is cut into 12x12 equal regions, one query each.

The idea is the spatially constrained resampler of LLaVA-UHD's ECCV version, which aligns each float region to a small
grid of samples by interpolation. Here the patches themselves are read, without interpolation: a query attends to the
patches that its region overlaps, with the log of the overlapping area added to the score. With equal scores it returns
the mean of the feature map over its region, taken exactly. A region smaller than a patch reads the one to four patches
it lies on, so every grid works, down to a single patch.

Legend: S regions a side, Q = S^2 queries, N patches of one view.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from infinity_mm.errors import explain
from infinity_mm.model.connectors.cross_attention import CrossAttention
from infinity_mm.model.connectors.shape import ConnectorShape


class RegionResampler(CrossAttention):
    """One token a region, in reading order."""

    def __init__(self, *, vision_dim: int, text_dim: int, hidden_dim: int, shape: ConnectorShape) -> None:
        super().__init__(vision_dim=vision_dim, text_dim=text_dim, hidden_dim=hidden_dim, shape=shape)
        assert shape.queries is not None
        self.side = math.isqrt(shape.queries)
        if self.side**2 != shape.queries:
            raise explain(
                what=f"{shape.queries} queries do not form a square of regions",
                where="connector_queries (model configuration)",
                fix="use a square number, usually 144",
            )

    def bias(self, rows: int, columns: int) -> Float[Tensor, "Q N"]:
        """The log of the area that region and patch have in common."""
        row_Sr, column_Sc = log_overlap(self.side, rows), log_overlap(self.side, columns)
        bias_SSrc = row_Sr[:, None, :, None] + column_Sc[None, :, None, :]
        return bias_SSrc.flatten(2).flatten(0, 1)


def log_overlap(num_regions: int, num_patches: int) -> Float[Tensor, "S n"]:
    """Log of the length that each of `num_regions` equal intervals shares with each patch of a side; -inf for none.

    In units of 1 / `num_regions` of a patch all borders are whole numbers, so nothing is lost to rounding.
    """
    region = torch.arange(num_regions).unsqueeze(1) * num_patches
    patch = torch.arange(num_patches).unsqueeze(0) * num_regions
    shared = torch.minimum(region + num_patches, patch + num_regions) - torch.maximum(region, patch)
    return shared.clamp(min=0).float().log()
