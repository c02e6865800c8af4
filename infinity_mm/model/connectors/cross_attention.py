"""One layer of cross-attention in which learned queries read the patches of a view.

    patch features --linear, norm--> + 2-D positions = keys;  queries --attend--> --norm, linear--> tokens of a view

Views of one grid are computed together and each grid by itself, so no patch is ever padding: a batch equals one view
at a time by construction.

Legend: P patches of all views, V views, G views of one grid, N patches of one view, Q queries, H heads, D vision
width, A attention width, E text width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from infinity_mm.errors import explain
from infinity_mm.model.connectors.shape import ConnectorShape

_HEAD_DIM = 128
"""Width of one attention head, where the attention width allows it."""


class CrossAttention(nn.Module):
    """What the resamplers share; they differ in `bias`, which says what each query may read.

    Source: the resampler of Qwen-VL (arXiv 2308.12966, section 2.1) with the positions of MiniCPM-V: added to keys
    only, and computed for the view's own grid.
    """

    def __init__(self, *, vision_dim: int, text_dim: int, hidden_dim: int, shape: ConnectorShape) -> None:
        super().__init__()
        assert shape.queries is not None
        if hidden_dim % 4:
            raise explain(
                what=f"an attention width of {hidden_dim} has no 2-D positions",
                where="connector_hidden (model configuration)",
                fix="set connector_hidden to a multiple of 4, usually of 128",
            )
        self.num_heads = max(1, hidden_dim // _HEAD_DIM)
        while hidden_dim % self.num_heads:
            self.num_heads -= 1
        self.query_embedding = nn.Embedding(shape.queries, hidden_dim)
        self.to_hidden = nn.Linear(vision_dim, hidden_dim, bias=False)
        self.query_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.key_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.query_proj = nn.Linear(hidden_dim, hidden_dim)
        self.key_proj = nn.Linear(hidden_dim, hidden_dim)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        self.out_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.to_text = nn.Linear(hidden_dim, text_dim, bias=False)

    def forward(
        self, features_PD: Float[Tensor, "P D"], view_shapes: Int[Tensor, "V 3"]
    ) -> Float[Tensor, "K E"]:
        """The tokens of every view, view by view, in the order of the queries."""
        grids = [(rows, columns) for _, rows, columns in view_shapes.tolist()]
        hidden_PA = self.key_norm(self.to_hidden(features_PD))
        query_QA = self.query_proj(self.query_norm(self.query_embedding.weight))
        values = self.value_proj(hidden_PA).split([rows * columns for rows, columns in grids])
        hidden = hidden_PA.split([rows * columns for rows, columns in grids])
        read: dict[int, Tensor] = {}
        for grid in dict.fromkeys(grids):
            members = [view for view, own in enumerate(grids) if own == grid]
            position_NA = positions(*grid, hidden_PA.shape[-1]).to(hidden_PA)
            key_GNA = self.key_proj(torch.stack([hidden[view] for view in members]) + position_NA)
            value_GNA = torch.stack([values[view] for view in members])
            read |= zip(members, self._attend(query_QA, key_GNA, value_GNA, grid), strict=True)
        read_VQA = torch.stack([read[view] for view in range(len(grids))])
        return self.to_text(self.out_norm(self.out_proj(read_VQA))).flatten(0, 1)

    def bias(self, rows: int, columns: int) -> Float[Tensor, "Q N"] | None:
        """Added to the scores of each query and patch, -inf where it may not look; None: all may see all."""
        raise NotImplementedError

    def _attend(
        self,
        query_QA: Float[Tensor, "Q A"],
        key_GNA: Float[Tensor, "G N A"],
        value_GNA: Float[Tensor, "G N A"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "G Q A"]:
        """Attention over views of one grid."""
        query_GQA = query_QA.expand(len(key_GNA), -1, -1)
        bias_QN = self.bias(*grid)
        read_GHQa = functional.scaled_dot_product_attention(
            *(x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query_GQA, key_GNA, value_GNA)),
            attn_mask=None if bias_QN is None else bias_QN.to(key_GNA),
        )
        return read_GHQa.transpose(1, 2).flatten(2)


def positions(rows: int, columns: int, width: int) -> Float[Tensor, "N width"]:
    """Sines and cosines of a patch's row in the first half and of its column in the second; for any grid."""
    frequency = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    row = torch.arange(rows).unsqueeze(1) * frequency
    column = torch.arange(columns).unsqueeze(1) * frequency
    row, column = torch.cat([row.sin(), row.cos()], 1), torch.cat([column.sin(), column.cos()], 1)
    return torch.cat(
        [row.unsqueeze(1).expand(-1, columns, -1), column.unsqueeze(0).expand(rows, -1, -1)], -1
    ).flatten(0, 1)
