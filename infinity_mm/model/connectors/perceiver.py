"""A plain resampler: 64 learned queries that all read the whole view (LLaVA-UHD, arXiv 2403.11703, section 3.2)."""

from torch import Tensor

from infinity_mm.model.connectors.cross_attention import CrossAttention


class Perceiver(CrossAttention):
    """Few tokens a view, whatever its size."""

    def bias(self, rows: int, columns: int) -> Tensor | None:
        """Nothing is hidden from any query."""
        return None
