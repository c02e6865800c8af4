"""Every connector by the name that `InfinityMMConfig.connector` uses."""

from torch import nn

from infinity_mm.model.connectors.mlp import MLP
from infinity_mm.model.connectors.perceiver import Perceiver
from infinity_mm.model.connectors.pixel_unshuffle_mlp import PixelUnshuffleMLP
from infinity_mm.model.connectors.region_resampler import RegionResampler

CONNECTORS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "pixel_unshuffle_mlp": PixelUnshuffleMLP,
    "region_resampler": RegionResampler,
    "perceiver": Perceiver,
}
"""To add one, write it beside the others with the same arguments, and give it a line here and in `shape.SHAPES`."""
