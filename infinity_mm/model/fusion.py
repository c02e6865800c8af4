"""Put image features where the placeholders stand, after counting both.

Legend: B batch rows, T positions, E text width, K image features of the whole batch.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from infinity_mm.errors import explain


def fuse(
    embeds_BTE: Float[Tensor, "B T E"], is_image_BT: Bool[Tensor, "B T"], features_KE: Float[Tensor, "K E"]
) -> Float[Tensor, "B T E"]:
    """Replace the k-th placeholder, in reading order, by the k-th feature; UserError when the counts differ."""
    check_counts(is_image_BT, features_KE)
    return embeds_BTE.masked_scatter(is_image_BT.unsqueeze(-1), features_KE.to(embeds_BTE.dtype))


def check_counts(is_image_BT: Bool[Tensor, "B T"], features_KE: Float[Tensor, "K E"]) -> None:
    """Raise UserError with both counts unless there is one feature per placeholder."""
    num_placeholders, num_features = int(is_image_BT.sum()), features_KE.shape[0]
    if num_placeholders != num_features:
        raise explain(
            what=f"the text has {num_placeholders} image tokens, the images have {num_features} features",
            where="fuse (InfinityMMModel.forward)",
            fix="do not truncate inside an image; expand placeholders and cut views from the same slice plan",
        )
