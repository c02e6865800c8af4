"""Checkpoints of every stock family with random weights and a tokenizer of a few hundred tokens, in their own formats.

The chat templates are short ones of our own in the shape of the released ones: what they write around texts, images and
answers is the same, videos and tools are left out.
"""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from infinity_mm.data.conversation import Conversation, Message

NAMES = ("qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "llava_onevision", "internvl")

WORDS = [
    "What is in the first picture? A red circle. Which colour is it?\n",
    "User: Assistant: system user assistant\n",
]

_CHATML = """\
{%- for message in messages -%}
SYSTEM
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- 'IMAGE' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_SYSTEM = """\
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nA helper.<|im_end|>\\n' -}}
{%- endif -%}
"""

_ONEVISION = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + ' ' -}}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- '\\n' + part['text'] -}}{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_SMOLVLM = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
{{- message['role'] | capitalize -}}
{{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""

_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_TEMPLATES = {
    "qwen2_5_vl": _CHATML.replace("SYSTEM\n", _SYSTEM).replace("IMAGE", _QWEN_IMAGE),
    "qwen3_vl": _CHATML.replace("SYSTEM\n", "").replace("IMAGE", _QWEN_IMAGE),
    "idefics3": _SMOLVLM,
    "smolvlm": _SMOLVLM,
    "llava_onevision": _ONEVISION,
    "internvl": _CHATML.replace("SYSTEM\n", "").replace("IMAGE", "<IMG_CONTEXT>\\n"),
}

_QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_SMOLVLM_TOKENS = [
    "<end_of_utterance>", "<|im_start|>", "<|endoftext|>", "<image>", "<fake_token_around_image>",
    "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)),
]  # fmt: skip
_SPECIAL = {
    "qwen2_5_vl": ["<|im_end|>", "<|im_start|>", "<|endoftext|>", *_QWEN_TOKENS],
    "qwen3_vl": ["<|im_end|>", "<|im_start|>", "<|endoftext|>", *_QWEN_TOKENS],
    "idefics3": _SMOLVLM_TOKENS,
    "smolvlm": _SMOLVLM_TOKENS,
    "llava_onevision": ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<image>", "<video>"],
    "internvl": ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
}  # fmt: skip

_TEXT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "max_position_embeddings": 4096,
}  # fmt: skip
_SIGLIP = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "patch_size": 4, "image_size": 16,
}  # fmt: skip


@cache
def tokenizer(name: str) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=_SPECIAL[name],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(WORDS, trainer)
    end, *others = _SPECIAL[name]
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=end,
        pad_token="<|endoftext|>",
        additional_special_tokens=others,
        chat_template=_TEMPLATES[name],
        **({"extra_special_tokens": named} if name == "internvl" else {}),
    )


def config(name: str) -> Any:
    """Everything small, and so that attention, slices and merging still have something to do."""
    ids = tokenizer(name).get_vocab()
    text = {**_TEXT, "vocab_size": len(tokenizer(name)), "pad_token_id": None, "eos_token_id": 0}
    qwen2 = {"model_type": "qwen2", **text, "tie_word_embeddings": True}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    match name:
        case "qwen2_5_vl":
            own = {
                "text_config": {**text, "rope_parameters": rope},
                "vision_config": {
                    "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 4,
                    "window_size": 16, "fullatt_block_indexes": [1], "out_hidden_size": 64,
                },
                "image_token_id": ids["<|image_pad|>"],
                "video_token_id": ids["<|video_pad|>"],
                "vision_start_token_id": ids["<|vision_start|>"],
            }  # fmt: skip
        case "qwen3_vl":
            own = {
                "text_config": {**text, "head_dim": 32, "rope_parameters": rope},
                "vision_config": {
                    "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 4,
                    "out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
                },
                "image_token_id": ids["<|image_pad|>"],
                "video_token_id": ids["<|video_pad|>"],
                "vision_start_token_id": ids["<|vision_start|>"],
                "vision_end_token_id": ids["<|vision_end|>"],
            }  # fmt: skip
        case "idefics3" | "smolvlm":
            own = {
                "text_config": {"model_type": "llama", **text},
                "vision_config": _SIGLIP,
                "scale_factor": 2,
                "image_token_id": ids["<image>"],
                "pad_token_id": ids["<|endoftext|>"],
            }
        case "llava_onevision":
            own = {
                "text_config": qwen2,
                "vision_config": {"model_type": "siglip_vision_model", **_SIGLIP},
                "image_token_index": ids["<image>"],
                "video_token_index": ids["<video>"],
                "image_grid_pinpoints": PINPOINTS,
                "vision_feature_layer": -1,
                "vision_aspect_ratio": "anyres_max_2",
            }
        case _:
            own = {
                "text_config": qwen2,
                "vision_config": {**_SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]},
                "image_token_id": ids["<IMG_CONTEXT>"],
                "image_seq_length": 4,
                "downsample_ratio": 0.5,
            }
    return CONFIG_MAPPING[name](**own)


PINPOINTS = [[16, 16], [16, 32], [32, 16], [32, 32], [16, 48], [48, 16]]


def processor(name: str) -> Any:
    from transformers import (
        Idefics3Processor,
        InternVLProcessor,
        InternVLVideoProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
    from transformers.models.idefics3.image_processing_idefics3 import Idefics3ImageProcessor
    from transformers.models.llava_onevision.image_processing_llava_onevision import (
        LlavaOnevisionImageProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor

    half: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    words: dict[str, Any] = {"tokenizer": tokenizer(name), "chat_template": _TEMPLATES[name]}
    match name:
        case "qwen2_5_vl" | "qwen3_vl":
            size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
            images: Any = Qwen2VLImageProcessor(size=size, patch_size=4, merge_size=2)
            if name == "qwen2_5_vl":
                return Qwen2_5_VLProcessor(
                    image_processor=images, video_processor=Qwen2VLVideoProcessor(), **words
                )
            return Qwen3VLProcessor(image_processor=images, video_processor=Qwen3VLVideoProcessor(), **words)
        case "idefics3":
            images = Idefics3ImageProcessor(
                size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, **half
            )
            return Idefics3Processor(images, image_seq_len=4, **words)
        case "smolvlm":
            images = SmolVLMImageProcessor(
                size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, **half
            )
            return SmolVLMProcessor(images, video_processor=SmolVLMVideoProcessor(), image_seq_len=4, **words)
        case "llava_onevision":
            images = LlavaOnevisionImageProcessor(
                size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS, **half
            )
            return LlavaOnevisionProcessor(
                images,
                video_processor=LlavaOnevisionVideoProcessor(),
                num_image_tokens=16,
                vision_feature_select_strategy="full",
                vision_aspect_ratio="anyres_max_2",
                **words,
            )
        case _:
            images = GotOcr2ImageProcessor(size={"height": 16, "width": 16}, max_patches=4, **half)
            return InternVLProcessor(
                images, video_processor=InternVLVideoProcessor(), image_seq_length=4, **words
            )


def write_checkpoint(name: str, folder: Path) -> Path:
    """Weights are spread out so that outputs depend visibly on inputs."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config(name))
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    model.save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def with_level(folder: Path, out: Path) -> Path:
    """LLaVA-OneVision as it was released: with a level in the vision tower's names that transformers leaves out."""
    shutil.copytree(folder, out)
    named = {
        key.replace("vision_tower.", "vision_tower.vision_model.", 1): t for key, t in tensors(folder).items()
    }
    save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    return out


def picture(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(*texts: str, images: int = 0, id_: str = "a", seed: int = 0) -> Conversation:
    """Questions and answers in turn, about pictures of different shapes."""
    roles = ["user", "assistant"] * len(texts)
    messages = [Message(role, text) for role, text in zip(roles, texts)]  # type: ignore[arg-type]
    pictures = tuple(picture(seed + i, 24 + 20 * i, 16) for i in range(images))
    return Conversation(id=id_, images=pictures, messages=tuple(messages))


THREE = (
    conversation("What is it?", "A red circle.", "Which colour?", "red", images=1, id_="one"),
    conversation("Which is first?", "the circle", images=2, id_="two", seed=5),
    conversation("Which colour?", "red it is", id_="none"),
)
"""With one image, with two, and text only."""


def write_three(folder: Path) -> Path:
    """THREE in LLaVA's format."""
    rows = []
    for c in THREE:
        for i, image in enumerate(c.images):
            image.save(folder / f"{c.id}{i}.png")
        texts = [{"from": {"user": "human", "assistant": "gpt"}[m.role], "value": m.text} for m in c.messages]
        rows.append(
            {"id": c.id, "image": [f"{c.id}{i}.png" for i in range(len(c.images))], "conversations": texts}
        )
    file = folder / "data.json"
    file.write_text(json.dumps(rows))
    return file
