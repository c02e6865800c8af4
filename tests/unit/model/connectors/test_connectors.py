"""What all connectors promise: their number of tokens, and a batch that equals its views one by one."""

import pytest
import torch
from torch import Tensor, nn

from infinity_mm.errors import UserError
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.connectors.registry import CONNECTORS
from infinity_mm.model.connectors.shape import SHAPES, ConnectorShape, connector_shape
from infinity_mm.vision.slicing import plan_slices

FORMS = [
    ("mlp", None, None),
    ("pixel_unshuffle_mlp", 2, None),
    ("pixel_unshuffle_mlp", 4, None),
    ("region_resampler", None, None),
    ("region_resampler", None, 9),
    ("perceiver", None, None),
    ("perceiver", None, 3),
]
VIEWS = [(0, 8, 8), (0, 4, 12), (0, 4, 12), (1, 20, 4), (2, 8, 8), (2, 4, 4)]
"""(image, rows, columns): three images, with views of equal and of different grids."""


def connector(name: str, merge: int | None, queries: int | None) -> tuple[nn.Module, ConnectorShape]:
    torch.manual_seed(0)
    shape = connector_shape(name, merge=merge, queries=queries)
    module = CONNECTORS[name](vision_dim=16, text_dim=24, hidden_dim=256, shape=shape)
    for weight in module.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.15)
    return module.eval(), shape


def features() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sum(rows * columns for _, rows, columns in VIEWS), 16, generator=generator)


def test_every_connector_has_a_shape() -> None:
    assert CONNECTORS.keys() == SHAPES.keys()


@pytest.mark.parametrize(("name", "merge", "queries"), FORMS)
def test_a_batch_of_views_equals_one_view_at_a_time(
    name: str, merge: int | None, queries: int | None
) -> None:
    module, shape = connector(name, merge, queries)
    parts = features().split([rows * columns for _, rows, columns in VIEWS])
    with torch.no_grad():
        together = module(features(), torch.tensor(VIEWS))
        alone = [module(part, torch.tensor([view])) for part, view in zip(parts, VIEWS, strict=True)]
    assert [len(part) for part in alone] == [shape.num_tokens(rows, columns) for _, rows, columns in VIEWS]
    assert together.shape[1] == 24
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize(("name", "merge", "queries"), FORMS)
def test_a_view_sees_no_other_view(name: str, merge: int | None, queries: int | None) -> None:
    module, shape = connector(name, merge, queries)
    changed = features()
    changed[:64] += 1  # the first view
    own = shape.num_tokens(8, 8)
    with torch.no_grad():
        before, after = module(features(), torch.tensor(VIEWS)), module(changed, torch.tensor(VIEWS))
    assert torch.equal(before[own:], after[own:])
    assert (before[:own] - after[:own]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mlp", 12 * 27), ("pixel_unshuffle_mlp", 6 * 13), ("region_resampler", 144), ("perceiver", 64)],
)
def test_the_planner_counts_what_the_connector_gives(name: str, expected: int) -> None:
    config = InfinityMMConfig(vision_config={"patch_size": 14}, connector=name, scale_px=252, max_slices=6)
    # An image of 2.25 to 1 and 252^2 px is one view: 378 x 168 px are 27 x 12 patches, or 26 x 12 when merged.
    plan = plan_slices(567, 252, config.slice_config())
    whole = plan_slices(378, 168, config.slice_config())
    assert whole.num_tokens == expected
    assert plan.num_tokens == sum(
        config.connector_shape().num_tokens(rows, columns) for rows, columns in plan.view_shapes
    )
    assert plan.num_slices > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "qformer"}, "no connector 'qformer'"),
        ({"name": "mlp", "merge": 2}, "the connector mlp merges no patches"),
        ({"name": "perceiver", "merge": 2}, "perceiver merges no patches"),
        ({"name": "pixel_unshuffle_mlp", "queries": 64}, "pixel_unshuffle_mlp has no queries"),
    ],
)
def test_a_shape_the_connector_cannot_have_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        connector_shape(**arguments)  # pyright: ignore[reportArgumentType]
