"""The two ways of cutting images behind one function: collator, processor, model and server all plan through here.

    sizes of a sample's images --SliceConfig--> plan_slices --> SlicePlan    (`views: uhd`)
                               --AnyresConfig-> plan_anyres --> AnyresPlan   (`views: anyres`)

Both plans have `views`, `view_shapes`, `num_tokens` and `num_patches`; `model/schema.py` writes their token ids and
`vision/pixels.py` cuts their pixels. Which of the two an object is, its `kind` says, not its class: code that travels
beside a checkpoint is imported once for each Auto class, so the same class exists several times.
"""

from collections.abc import Sequence

from infinity_mm.vision.anyres import AnyresConfig, AnyresPlan, plan_anyres
from infinity_mm.vision.slicing import SliceConfig, SlicePlan, plan_slices

ViewConfig = SliceConfig | AnyresConfig
"""How images are cut."""
ImagePlan = SlicePlan | AnyresPlan
"""What was decided for one image."""


def plan_image(width: int, height: int, config: ViewConfig, *, alone: bool = True) -> ImagePlan:
    """The plan of one image; `alone` says that it is its sample's only one, which only anyres asks."""
    if config.kind == "anyres":
        return plan_anyres(width, height, config, alone=alone)
    return plan_slices(width, height, config)


def plan_images(sizes: Sequence[tuple[int, int]], config: ViewConfig) -> list[ImagePlan]:
    """The plans of all images of one sample; `sizes` are (width, height) in pixels."""
    return [plan_image(width, height, config, alone=len(sizes) == 1) for width, height in sizes]


def view_shapes(plans: Sequence[ImagePlan]) -> list[tuple[int, ...]]:
    """One row per view of all images: the image's index, then what its plan says of the view."""
    return [(index, *shape) for index, plan in enumerate(plans) for shape in plan.view_shapes]
