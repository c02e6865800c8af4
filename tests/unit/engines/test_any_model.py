"""Other families of transformers, with random weights, through their own processors."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import WORDS, Drawn, look

from infinity_mm.engines.base import Failure, Reply
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.model.tokenizer import build_tokenizer

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 400,
    "bos_token_id": None,
}


def tokenizer_with(image: str, *others: str) -> Any:
    tokenizer = build_tokenizer(WORDS, 340)
    tokenizer.add_special_tokens({"additional_special_tokens": [image, *others]})
    return tokenizer


def llava() -> tuple[Any, Any]:
    """One row of positions, a fixed number of image tokens."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizer_with("<image>")
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=str(tokenizer.chat_template).replace("<|image|>", "<image>"),
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
    return LlavaForConditionalGeneration(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    """Positions in three dimensions, as many image tokens as the image needs."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    names = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer = tokenizer_with(*names)
    image, start, end, video = tokenizer.convert_tokens_to_ids(list(names))
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    template = str(tokenizer.chat_template).replace(
        "<|image|>", "<|vision_start|><|image_pad|><|vision_end|>"
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=8, merge_size=2, size={"shortest_edge": 1024, "longest_edge": 4096}
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=template,
    )
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
        video_token_id=video,
    )
    return Qwen2VLForConditionalGeneration(config), processor


@pytest.mark.parametrize("family", [llava, qwen2_vl])
def test_a_reply_is_the_same_alone_and_in_a_batch(family: Any, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    model, processor = family()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15, generator=generator)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = Drawn()
    requests = [
        look(images.image(0), "what is a circle"),
        look(images.image(1, (90, 40)), "what"),
        look(images.image(1, (90, 40)), "what", temperature=0.9, seed=3),
        look(images.image(0), "yes?", choices=("yes", "no", "a red circle")),
        look((images.image(0), images.image(2, (30, 60))), "two", max_new_tokens=3),
        look((), "no image"),
        look(images.image(0), "word " * 500),
    ]

    async def run() -> tuple[list[Reply | Failure], list[Reply | Failure]]:
        async with TransformersSpec(model=str(tmp_path), threads=1, max_wait_s=0.0).open(images) as engine:
            together = await engine.generate(requests)
            return together, [(await engine.generate([request]))[0] for request in requests]

    together, alone = asyncio.run(run())
    scored, scored_alone = together[3], alone[3]
    assert isinstance(scored, Reply)
    assert isinstance(scored_alone, Reply)
    assert scored.choice_logprobs == pytest.approx(scored_alone.choice_logprobs)
    assert [a.text if isinstance(a, Reply) else a.reason for a in together] == [
        a.text if isinstance(a, Reply) else a.reason for a in alone
    ]
    assert isinstance(together[-1], Failure)
    assert together[-1].reason == "too_long"
    assert len({a.text for a in together if isinstance(a, Reply)}) == 6
