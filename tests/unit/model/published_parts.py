"""Tiny random checkpoints in the formats that parts are published in, for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

VISION: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 64, "patch_size": 4,
    "image_size": 32,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip


def spread(model: torch.nn.Module, seed: int = 0) -> Any:
    """Weights and biases large enough that every one of them shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2, generator=generator)
    return model.eval()


def save_siglip(folder: Path) -> SiglipVisionModel:
    model = spread(SiglipVisionModel(SiglipVisionConfig(**VISION)))
    model.save_pretrained(folder)
    return model


def save_siglip_with_text(folder: Path) -> SiglipModel:
    text = {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 99,
    }
    model = spread(SiglipModel(SiglipConfig(vision_config=VISION, text_config=text)))
    model.save_pretrained(folder)
    return model


def save_open_clip(
    folder: Path,
    *,
    name: str = "vit_base_patch16_siglip_224",
    num_heads: int = 12,
    extra: dict[str, torch.Tensor] | None = None,
) -> Any:
    """A timm ViT in open_clip's files; returns it."""
    from timm.models.vision_transformer import VisionTransformer

    trunk = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=3, num_heads=num_heads, mlp_ratio=64 / 48, class_token=False,
        global_pool="map", num_classes=0, act_layer="gelu_tanh",
    )  # fmt: skip
    spread(trunk)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": {"embed_dim": 48, "vision_cfg": {"image_size": 32, "timm_model_name": name}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tensors = {f"visual.trunk.{key}": value.clone() for key, value in trunk.state_dict().items()}
    text = {"text.token_embedding.weight": torch.zeros(9, 48), "logit_scale": torch.tensor(1.0)}
    save_file(tensors | text | (extra or {}), folder / "open_clip_model.safetensors")
    return trunk


def save_tokenizer(folder: Path, *special: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as language models have it: no image tokens, its own end token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(["the start of the image, the end of the row, part of a message"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=special[0],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_qwen2(folder: Path, *, rows: int = 320, tied: bool = True) -> Any:
    """Qwen's habits: ChatML tokens, more rows than tokens."""
    save_tokenizer(folder, "<|endoftext|>", "<|im_start|>", "<|im_end|>", chat_template="{{ messages }}")
    model = spread(Qwen2ForCausalLM(Qwen2Config(**TEXT, vocab_size=rows, tie_word_embeddings=tied)), seed=1)
    model.save_pretrained(folder)
    return model


def save_llama(folder: Path) -> Any:
    """Llama's habits: one row a token, an untied head, no ChatML tokens, no padding token."""
    num_tokens = len(save_tokenizer(folder, "</s>"))
    model = spread(
        LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=num_tokens, tie_word_embeddings=False)), seed=2
    )
    model.save_pretrained(folder)
    return model
