"""A tiny random LLaVA-OneVision checkpoint on disk, in transformers' naming and in LLaVA-NeXT's, for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from infinity_mm.model.tokenizer import build_tokenizer

TILE_PX = 30
"""With patches of 4 px: 7 x 7, odd, and 2 px that no patch sees, as 384 has with 14."""
PINPOINTS = [[rows * TILE_PX, columns * TILE_PX] for rows in range(1, 5) for columns in range(1, 5)]


def write_transformers(folder: Path, *, layer: int = -1, tied: bool = False) -> None:
    """As transformers saves it; weights are spread out so that outputs depend visibly on inputs."""
    tokenizer: Any = build_tokenizer(["What colour is the circle? The circle is red, 12 px wide.\n"] * 4, 320)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<image>", "<video>"]}, replace_extra_special_tokens=False
    )
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    no_head: Any = {"vision_use_head": False}  # as released: no pooled embedding of the whole image
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
            patch_size=4, image_size=TILE_PX, **no_head,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48, max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=tied,
        ),
        image_token_index=image, video_token_index=video, image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_3", vision_feature_layer=layer, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model: Any = LlavaOnevisionForConditionalGeneration(config)
        for weight in model.parameters():
            weight.normal_(std=0.15 if weight.dim() > 1 else 0.4)
    model.save_pretrained(folder)
    images = LlavaOnevisionImageProcessorPil(
        size={"height": TILE_PX, "width": TILE_PX}, image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    LlavaOnevisionProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=LlavaOnevisionVideoProcessor(),
        num_image_tokens=49, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_3",
    ).save_pretrained(folder)  # fmt: skip


def theirs(folder: Path) -> tuple[Any, Any]:
    """Transformers' own model and processor; the latter resizes as we do, with torch on 8-bit values."""
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), LlavaOnevisionProcessor.from_pretrained(folder)


def write_llava_next(source: Path, folder: Path) -> None:
    """The checkpoint in `source` again, as LLaVA-NeXT saves it, with what it saves beside the weights we need."""
    folder.mkdir()
    renames = {
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "image_newline": "model.image_newline",
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        start = next(start for start in renames if name.startswith(start))
        tensors[renames[start] + name.removeprefix(start)] = tensor
    tensors["model.vision_tower.vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((source / "config.json").read_text())
    text, vision = raw["text_config"], raw["vision_config"]
    tower = folder / "towers" / "siglip-tiny"
    tower.mkdir(parents=True)
    # LLaVA-NeXT's tower drops its last layer, so that the one it was made from has one more.
    (tower / "config.json").write_text(json.dumps({**vision, "num_hidden_layers": 4}))
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    config = {
        **{key: text[key] for key in (*keys, "vocab_size", "max_position_embeddings", "rms_norm_eps")},
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "tie_word_embeddings": raw["tie_word_embeddings"],
        "image_aspect_ratio": "anyres_max_3",
        "image_grid_pinpoints": PINPOINTS,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "towers/siglip-tiny",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        # LLaVA-NeXT's tokenizer has no image token at all.
        (folder / name).write_text((source / name).read_text().replace("image", "unused"))
