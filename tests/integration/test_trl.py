"""TRL's own SFTTrainer takes the `messages` export as it is: no conversion, no column renamed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.clip import CLIPImageProcessor

from infinity_mm.formats.convert import export_data, import_data

pytestmark = pytest.mark.integration

WORDS = [
    "<pad>",
    "<eos>",
    "<image>",
    "user",
    "assistant",
    "?",
    ".",
    "What",
    "is",
    "it",
    "a",
    "red",
    "dot",
    "same",
]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ ' <eos> ' }}{% endfor %}"
)


def processor() -> LlavaProcessor:
    """A tokenizer of a few words and pictures of 32 px: 16 patches each."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<image>"],
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def model() -> LlavaForConditionalGeneration:
    """LLaVA with random weights, about 20,000 of them."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    text = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    ids: dict[str, Any] = {"image_token_id": WORDS.index("<image>"), "pad_token_id": 0}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **ids))


def exported(folder: Path) -> Path:
    """Rows of two, one and no images, imported from LLaVA JSON and exported as messages."""
    rows: list[dict[str, Any]] = []
    for number, images in enumerate([["0.png", "1.png"], ["2.png"], [], ["3.png"]]):
        for name in images:
            Image.new("RGB", (40, 32), (60 * int(name[0]), 0, 0)).save(folder / name)
        question = "<image>\n" * len(images) + ("same ?" if len(images) == 2 else "What is it ?")
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": "a red dot ."}]
        rows.append({"id": str(number), "image": images, "conversations": talk})
    (folder / "rows.json").write_text(json.dumps(rows))
    import_data("llava", folder / "rows.json", folder / "in")
    export_data(folder / "in", "messages", folder / "out")
    return folder / "out"


def test_sft_trainer_takes_two_steps_on_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries themselves
        datasets = pytest.importorskip("datasets")
        trl = pytest.importorskip("trl")
        datasets.disable_progress_bars()
        rows = datasets.load_dataset(
            str(exported(tmp_path)), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert rows.features["images"] == datasets.List(datasets.Image())
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            max_length=None,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            logging_steps=1,
        )
        student = model()
        before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
        trainer = trl.SFTTrainer(
            model=student, args=arguments, train_dataset=rows, processing_class=processor()
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == 2
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    moved = {name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])}
    assert any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved)
