"""Two linear layers with a GELU, one token a patch (LLaVA-1.5, arXiv 2310.03744, section 3.3).

Legend: P patches of all views, V views, F input width, E text width.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from infinity_mm.model.connectors.shape import ConnectorShape


class MLP(nn.Module):
    """Every patch by itself."""

    def __init__(self, *, vision_dim: int, text_dim: int, hidden_dim: int, shape: ConnectorShape) -> None:
        super().__init__()
        self.merge = shape.merge
        self.up = nn.Linear(vision_dim * shape.merge**2, hidden_dim)
        self.act = nn.GELU()
        self.down = nn.Linear(hidden_dim, text_dim)

    def forward(
        self, features_PF: Float[Tensor, "P F"], view_shapes: Int[Tensor, "V 3"]
    ) -> Float[Tensor, "P E"]:
        """One token a row of `features_PF`, in the same order."""
        return self.down(self.act(self.up(features_PF)))
