"""Published vision towers: equal outputs, and every tensor accounted for."""

from pathlib import Path

import pytest
import torch
from published_parts import VISION, save_open_clip, save_qwen2, save_siglip, save_siglip_with_text
from safetensors.torch import load_file, save_file
from torch import Tensor

from infinity_mm.errors import UserError
from infinity_mm.model.vision_tower import VisionTower
from infinity_mm.model.vision_weights import load_vision_tower

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def features(tower: VisionTower, pixels: Tensor = PIXELS) -> Tensor:
    """Our tower on whole square pictures."""
    tiles = pixels.unfold(2, 4, 4).unfold(3, 4, 4)  # (2, 3, 8, 8, 4, 4)
    patches = tiles.permute(0, 2, 3, 1, 4, 5).reshape(2 * 64, 48)
    with torch.no_grad():
        return tower.eval()(patches, torch.tensor([[0, 8, 8], [1, 8, 8]])).view(2, 64, -1)


def test_a_siglip_tower_gives_the_outputs_of_transformers(tmp_path: Path) -> None:
    theirs = save_siglip(tmp_path)
    with torch.no_grad():
        expected = theirs(PIXELS).last_hidden_state
    assert torch.allclose(features(load_vision_tower(str(tmp_path))), expected, atol=1e-5)


def test_the_tower_of_a_whole_siglip_gives_the_outputs_of_transformers(tmp_path: Path) -> None:
    theirs = save_siglip_with_text(tmp_path)
    with torch.no_grad():
        expected = theirs.vision_model(PIXELS).last_hidden_state
    assert torch.allclose(features(load_vision_tower(str(tmp_path))), expected, atol=1e-5)


def test_older_files_with_one_more_level_of_names_load(tmp_path: Path) -> None:
    theirs = save_siglip(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {
        f"vision_model.{key}".replace("vision_model.vision_model.", "vision_model."): tensor
        for key, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    with torch.no_grad():
        expected = theirs(PIXELS).last_hidden_state
    assert torch.allclose(features(load_vision_tower(str(tmp_path))), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "num_heads"), [("vit_base_patch16_siglip_224", 12), ("vit_so400m_patch14_siglip_384", 16)]
)
def test_an_open_clip_tower_gives_the_outputs_of_timm(name: str, num_heads: int, tmp_path: Path) -> None:
    trunk = save_open_clip(tmp_path, name=name, num_heads=num_heads)
    with torch.no_grad():
        expected = trunk.forward_features(PIXELS)
    tower = load_vision_tower(str(tmp_path))
    assert torch.allclose(features(tower), expected, atol=1e-5)
    sizes = {**VISION, "num_attention_heads": num_heads}
    assert {key: getattr(tower.config, key) for key in sizes} == sizes


def test_our_own_tower_loads(tmp_path: Path) -> None:
    save_siglip(tmp_path / "theirs")
    tower = load_vision_tower(str(tmp_path / "theirs"))
    tower.save_pretrained(tmp_path / "ours")
    assert torch.equal(features(load_vision_tower(str(tmp_path / "ours"))), features(tower))


def test_the_last_layers_can_be_left_out(tmp_path: Path) -> None:
    theirs = save_siglip(tmp_path)
    tower = load_vision_tower(str(tmp_path), num_layers=2)
    with torch.no_grad():
        hidden = theirs(PIXELS, output_hidden_states=True).hidden_states[-2]
        post_layernorm = theirs.get_submodule("post_layernorm")
        assert torch.allclose(features(tower), post_layernorm(hidden), atol=1e-5)
    with pytest.raises(UserError, match=r"vision_layers=4, but .* has 3 layers"):
        load_vision_tower(str(tmp_path), num_layers=4)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_siglip(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(file).items() if "layers.1.mlp.fc1.bias" not in key}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors .*layers\.1\.mlp\.fc1\.bias"):
        load_vision_tower(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["visual.trunk.blocks.0.ls1.gamma", "visual.trunk.blocks.0.norm.weight", "visual.trunk.norm1.bias"],
)
def test_an_unknown_open_clip_tensor_is_named(name: str, tmp_path: Path) -> None:
    save_open_clip(tmp_path, extra={name: torch.zeros(48)})
    with pytest.raises(UserError, match=name):
        load_vision_tower(str(tmp_path))


def test_a_missing_open_clip_tensor_is_named(tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    file = tmp_path / "open_clip_model.safetensors"
    save_file({k: t for k, t in load_file(file).items() if not k.endswith("blocks.2.norm1.bias")}, file)
    with pytest.raises(UserError, match=r"encoder\.layers\.2\.layer_norm1\.bias"):
        load_vision_tower(str(tmp_path))


def test_an_open_clip_tower_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_open_clip(tmp_path, name="vit_medium_patch16_clip_224")
    with pytest.raises(UserError, match="vit_medium_patch16_clip_224"):
        load_vision_tower(str(tmp_path))


def test_a_language_model_is_no_vision_tower(tmp_path: Path) -> None:
    save_qwen2(tmp_path)
    with pytest.raises(UserError, match="is a qwen2 model, not a SigLIP"):
        load_vision_tower(str(tmp_path))
