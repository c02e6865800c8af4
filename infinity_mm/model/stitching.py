"""Put the tiles of an `anyres` image together as the language model sees it.

    features of base view and tiles --one map, unpadded, shrunk, newline per row--> base features, map features

Legend: K features of all views, V views, E text width, r and c rows and columns of a map.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from infinity_mm.errors import explain
from infinity_mm.vision.anyres import AnyresConfig, AnyresPlan, plan_anyres


def stitch(
    features_KE: Float[Tensor, "K E"],
    view_shapes: Int[Tensor, "V S"],
    config: AnyresConfig,
    newline_E: Float[Tensor, " E"],
) -> list[Float[Tensor, "_ E"]]:
    """The features of each image; `view_shapes` has image index, rows, columns, image width, image height."""
    if view_shapes.shape[1] != 5:
        raise explain(
            what=f"view_shapes has {view_shapes.shape[1]} columns, an anyres model needs the images' sizes in two more",
            where="stitch (InfinityMMModel.get_image_features)",
            fix="use an image processor with views='anyres', as saved with the model",
        )
    images: dict[int, list[int]] = {}
    for image, _, _, width, height in view_shapes.tolist():
        images.setdefault(image, [width, height, 0])[2] += 1
    side, start, out = config.tile_cells, 0, []
    for width, height, num_views in images.values():
        plan = plan_anyres(width, height, config, alone=num_views > 1)
        end = start + num_views * side**2
        out.append(_one_image(features_KE[start:end], plan, side, newline_E.to(features_KE.dtype)))
        start = end
    return out


def _one_image(
    features_KE: Float[Tensor, "K E"], plan: AnyresPlan, side: int, newline_E: Float[Tensor, " E"]
) -> Float[Tensor, "_ E"]:
    """Base features, then the map row by row with a newline after each; a single view ends with one newline."""
    base_NE = features_KE[: side**2]
    if plan.grid is None:
        return torch.cat([base_NE, newline_E[None]])
    columns, rows = plan.grid
    tiles = features_KE[side**2 :].view(rows, columns, side, side, -1)
    map_Erc = tiles.permute(4, 0, 2, 1, 3).reshape(-1, rows * side, columns * side)
    map_Erc = _cropped(map_Erc, *plan.unpadded)
    if plan.shrunk != plan.unpadded:
        map_Erc = functional.interpolate(map_Erc[None], plan.shrunk[::-1], mode="bilinear")[0]
    newlines_Er1 = newline_E[:, None, None].expand(-1, map_Erc.shape[1], 1)
    return torch.cat([base_NE, torch.cat([map_Erc, newlines_Er1], dim=2).flatten(1).T])


def _cropped(map_Erc: Float[Tensor, "E r c"], columns: int, rows: int) -> Float[Tensor, "E r2 c2"]:
    """The middle of the map: what is cut off is even, and as much on either side."""
    top, left = (map_Erc.shape[1] - rows) // 2, (map_Erc.shape[2] - columns) // 2
    return map_Erc[:, top : top + rows, left : left + columns]
