"""The vision tower: batches equal single views, padding is never seen, positions are float32."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from infinity_mm.errors import UserError
from infinity_mm.model.attention import DENSE
from infinity_mm.model.vision_tower import VisionTower

GRIDS = [(8, 8), (4, 6), (8, 8), (2, 10), (6, 4)]


def tower(attention: str = "sdpa") -> VisionTower:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        patch_size=4,
        image_size=32,
    )
    config._attn_implementation = attention
    return VisionTower(config).eval()


def views(grids: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(sum(rows * columns for rows, columns in grids), 48, generator=generator)
    return patches, torch.tensor([(0, rows, columns) for rows, columns in grids])


each_padding_backend = pytest.mark.parametrize("attention", DENSE)


@each_padding_backend
def test_a_batch_of_views_equals_one_view_at_a_time(attention: str) -> None:
    patches, shapes = views(GRIDS)
    model = tower(attention)
    together = model(patches, shapes)
    parts = patches.split([rows * columns for rows, columns in GRIDS])
    alone = torch.cat([model(part, shape.unsqueeze(0)) for part, shape in zip(parts, shapes, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_equal_views_are_encoded_without_a_mask() -> None:
    model = tower()
    masks: list[Any] = []
    model.encoder.layers[0].register_forward_pre_hook(lambda _, args: masks.append(args[1]))
    model(*views([(8, 8), (8, 8)]))
    model(*views([(8, 8), (4, 8)]))
    assert masks[0] is None
    assert masks[1] is not None


@each_padding_backend
def test_a_padded_patch_is_never_attended(attention: str) -> None:
    model = tower(attention)
    patches, shapes = views([(8, 8), (2, 4)])
    clean = model(patches, shapes)

    def spoil(
        _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs["inputs_embeds"][1, 8:] = 1e4
        return args, kwargs

    model.encoder.register_forward_pre_hook(spoil, with_kwargs=True)
    assert torch.equal(model(patches, shapes), clean)


@each_padding_backend
def test_a_patch_moves_only_its_own_view(attention: str) -> None:
    model = tower(attention)
    patches, shapes = views([(4, 4), (2, 4)])
    before = model(patches, shapes)
    patches[20] += 1
    after = model(patches, shapes)
    assert torch.equal(before[:16], after[:16])
    assert (before[16:] - after[16:]).abs().amin(1).max() > 0


def test_the_pretrained_grid_uses_the_table_as_it_is() -> None:
    embeddings = tower().embeddings
    assert torch.equal(embeddings.positions([(8, 8)]), embeddings.position_embedding.weight)


def test_positions_are_interpolated_in_float32_in_a_bfloat16_model() -> None:
    embeddings = tower().bfloat16().embeddings
    with torch.autocast("cpu", torch.bfloat16):
        positions = embeddings.positions([(6, 10)])
    table = embeddings.position_embedding.weight.float().T.reshape(1, 32, 8, 8)
    expected = torch.nn.functional.interpolate(table, size=(6, 10), mode="bicubic").flatten(2).squeeze(0).T
    assert positions.dtype == torch.float32
    assert torch.equal(positions, expected)


def test_square_views_equal_transformers_siglip_with_the_same_weights() -> None:
    ours = tower()
    theirs = SiglipVisionModel(ours.config).eval()
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all("head" in key for key in missing.missing_keys)
    pixels = torch.randn(2, 3, 32, 32)
    patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(128, 48)
    features = ours(patches, torch.tensor([(0, 8, 8), (1, 8, 8)]))
    expected = theirs(pixels).last_hidden_state.reshape(128, 32)
    assert torch.allclose(features, expected, atol=1e-5)


def test_patch_counts_must_agree() -> None:
    patches, shapes = views([(4, 4)])
    with pytest.raises(UserError, match=r"15 patches.*describes 16"):
        tower()(patches[:-1], shapes)
