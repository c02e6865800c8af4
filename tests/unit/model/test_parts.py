"""A model from parts: the language model's own logits, the tokens' first values, and one folder in the end."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from published_parts import save_llama, save_qwen2, save_siglip
from tiny_vlm import picture
from transformers import AutoTokenizer
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.config import load_config
from infinity_mm.errors import UserError
from infinity_mm.model import parts
from infinity_mm.model.connectors.shape import connector_shape
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.parts import PartsSpec, build_from_parts
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.schema import SchemaTokens
from infinity_mm.model.tokenizer import CHAT_TEMPLATE

MODELS = Path(__file__).parents[3] / "configs" / "models"
SAVE = {"qwen2": save_qwen2, "llama": save_llama}
IDS = torch.tensor([[5, 9, 60, 270, 14, 3]])


def assembled(folder: Path, language: str = "qwen2", **changes: Any) -> tuple[Any, Any, Any]:
    """(the language model alone, the whole model, its processor)."""
    save_siglip(folder / "vision")
    alone = SAVE[language](folder / "language")
    spec = {
        "vision": str(folder / "vision"),
        "language": str(folder / "language"),
        "scale_px": 32,
        "max_slices": 4,
    }
    return alone, *build_from_parts(PartsSpec(**(spec | changes)))


@pytest.mark.parametrize("language", ["qwen2", "llama"])
def test_text_alone_gives_the_logits_of_the_language_model(language: str, tmp_path: Path) -> None:
    alone, model, _ = assembled(tmp_path, language)
    num_tokens = len(AutoTokenizer.from_pretrained(tmp_path / "language"))
    with torch.no_grad():
        expected, got = alone(IDS).logits, model(IDS).logits
    assert torch.allclose(got[..., :num_tokens], expected[..., :num_tokens], atol=1e-5)


@pytest.mark.parametrize(
    "connector",
    [
        {"connector": "perceiver", "connector_queries": 5},
        {"connector": "mlp"},
        {"merge": 4},
        {"connector": "mlp", "views": "anyres", "max_tiles": 2, "vision_post_layernorm": False},
        {"overview": "last"},
    ],
    ids=str,
)
@pytest.mark.parametrize("language", ["qwen2", "llama"])
def test_the_saved_folder_gives_the_same_model(
    language: str, connector: dict[str, Any], tmp_path: Path
) -> None:
    _, model, processor = assembled(tmp_path, language, **connector)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again = InfinityMMForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    saved: Any = InfinityMMProcessor.from_pretrained(tmp_path / "whole")
    inputs = saved(images=[picture(60, 40)], text=["<|image|> the row"], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert inputs["input_ids"].max() < model.config.text_config.vocab_size


@pytest.mark.parametrize("language", ["qwen2", "llama"])
def test_a_new_token_starts_as_the_mean_of_its_meaning(language: str, tmp_path: Path) -> None:
    alone, model, processor = assembled(tmp_path, language)
    before = AutoTokenizer.from_pretrained(tmp_path / "language")
    pieces = before.encode("start of image", add_special_tokens=False)
    new = processor.tokenizer.get_vocab()["<|image_start|>"]
    for own, whole in (
        (alone.get_input_embeddings(), model.get_input_embeddings()),
        (alone.get_output_embeddings(), model.lm_head),
    ):
        assert torch.allclose(whole.weight[new], own.weight[pieces].mean(0), atol=1e-6)


def test_spare_rows_are_used_before_the_table_grows(tmp_path: Path) -> None:
    _, model, processor = assembled(tmp_path)
    assert len(processor.tokenizer) < 320
    assert model.get_input_embeddings().weight.shape[0] == model.config.text_config.vocab_size == 320
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_grown_table_has_a_multiple_of_64_rows(tmp_path: Path) -> None:
    alone, model, processor = assembled(tmp_path, "llama")
    assert alone.config.vocab_size < len(processor.tokenizer)
    rows = {
        len(model.get_input_embeddings().weight),
        len(model.lm_head.weight),
        model.config.text_config.vocab_size,
    }
    assert len(rows) == 1
    assert rows.pop() % 64 == 0
    assert model.lm_head.weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("language", ["qwen2", "llama"])
def test_the_tokenizer_writes_chatml_and_stops_at_its_end(language: str, tmp_path: Path) -> None:
    _, model, processor = assembled(tmp_path, language)
    tokenizer = processor.tokenizer
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert text == "<|im_start|>user\n<|image|>What?<|im_end|>\n"
    vocab = tokenizer.get_vocab()
    assert tokenizer.eos_token_id == vocab["<|im_end|>"] == model.generation_config.eos_token_id[0]
    assert vocab["</s>" if language == "llama" else "<|endoftext|>"] in model.generation_config.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert [len(tokenizer.encode(token)) for token in SchemaTokens().all] == [1] * 5


def test_a_template_that_writes_as_ours_is_kept(tmp_path: Path) -> None:
    save_siglip(tmp_path / "vision")
    save_qwen2(tmp_path / "language")
    own = CHAT_TEMPLATE + "{# the model's own #}"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "language")
    tokenizer.chat_template = own
    tokenizer.save_pretrained(tmp_path / "language")
    spec = PartsSpec(vision=str(tmp_path / "vision"), language=str(tmp_path / "language"), scale_px=32)
    assert build_from_parts(spec)[1].tokenizer.chat_template == own


def test_the_connector_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    _, one, _ = assembled(tmp_path)
    _, same, _ = assembled(tmp_path)
    _, other, _ = assembled(tmp_path, seed=1)
    weights = [model.model.connector.up.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.2)


def test_every_weight_is_real_and_trains(tmp_path: Path) -> None:
    _, model, processor = assembled(tmp_path)
    inputs = processor(images=[picture(60, 40)], text=["<|image|> the row"], return_tensors="pt")
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.is_meta or weight.grad is None] == []


def test_a_language_model_with_another_head_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward: Any = parts.InfinityMMForConditionalGeneration.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits.tanh()  # as Gemma 2 caps its logits
        return out

    monkeypatch.setattr(parts.InfinityMMForConditionalGeneration, "forward", scaled)
    with pytest.raises(UserError, match="logits differ by"):
        assembled(tmp_path)


@pytest.mark.parametrize("file", sorted(MODELS.glob("*.yaml")), ids=lambda file: file.name)
def test_a_shipped_file_of_parts_is_strictly_valid(file: Path) -> None:
    spec = load_config(PartsSpec, file)
    shape = connector_shape(spec.connector, merge=spec.merge, queries=spec.connector_queries)
    found = re.search(r"patch(\d+)-", spec.vision)
    assert found is not None
    assert spec.views == "anyres" or spec.scale_px % (int(found.group(1)) * shape.merge) == 0


def test_parts_are_put_together_from_the_command_line(tmp_path: Path) -> None:
    save_siglip(tmp_path / "vision")
    save_qwen2(tmp_path / "language")
    arguments = [f"vision={tmp_path / 'vision'}", f"language={tmp_path / 'language'}", "vision_layers=2"]
    done = CliRunner().invoke(
        app, ["assemble", str(MODELS / "aquila_vl_2b.yaml"), *arguments, "--out", str(tmp_path / "whole")]
    )
    assert done.exit_code == 0, done.output
    model = InfinityMMForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert f"{sum(weight.numel() for weight in model.parameters()):,} parameters" in done.output.replace(
        "\n", ""
    )
    assert (model.config.views, model.config.connector) == ("anyres", "mlp")
