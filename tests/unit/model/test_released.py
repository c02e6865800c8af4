"""Released checkpoints: as our model they answer as transformers' own code does, in either naming."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_onevision import theirs, write_llava_next, write_transformers
from tiny_vlm import picture

from infinity_mm.data.conversation import Conversation
from infinity_mm.data.encode import Encoder
from infinity_mm.data.readers.stored import chat_messages
from infinity_mm.errors import UserError
from infinity_mm.model.load import load_model
from infinity_mm.model.released import LLAVA_NEXT, TRANSFORMERS, our_name

SIZES = [(30, 30), (200, 30), (41, 97), (500, 480), (1, 60)]
QUESTION = "<|im_start|>user\n{images}What colour is the circle?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "transformers"
    write_transformers(folder)
    return folder


@pytest.fixture(scope="module")
def next_folder(transformers_folder: Path) -> Path:
    folder = transformers_folder.parent / "next"
    write_llava_next(transformers_folder, folder)
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """`load_model`, typed loosely: transformers' own annotations hide most of what its objects take."""
    return load_model(folder)


def logits(model: Any, processor: Any, images: Sequence[Sequence[Image.Image]]) -> torch.Tensor:
    """Of one row per entry of `images`, each in a batch of its own; the images of an entry are one sample's."""
    rows = []
    for pictures in images:
        text = QUESTION.format(images=processor.image_token * len(pictures))
        inputs = processor(text=[text], images=[list(pictures)] if pictures else None, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0])
    return torch.cat(rows)


@pytest.mark.parametrize("naming", ["transformers", "next"])
def test_logits_equal_those_of_transformers(
    transformers_folder: Path, next_folder: Path, naming: str
) -> None:
    model, processor = load(transformers_folder if naming == "transformers" else next_folder)
    samples = [
        [],
        *([picture(*size, seed=seed)] for seed, size in enumerate(SIZES)),
        [picture(200, 30), picture(30, 90)],
    ]
    ours = logits(model.eval(), processor, samples)
    expected = logits(*theirs(transformers_folder), samples)
    vocab = min(ours.shape[1], expected.shape[1])  # LLaVA-NeXT has no image token of its own, so we add one
    assert ours.shape[0] == expected.shape[0] > 49 * 10
    torch.testing.assert_close(ours[:, :vocab], expected[:, :vocab], atol=1e-4, rtol=0)
    assert expected.std() > 0.1


def test_a_picture_list_without_nesting_is_one_image_per_text(transformers_folder: Path) -> None:
    pictures = [picture(200, 30), picture(30, 90)]
    _, processor = load(transformers_folder)
    _, expected = theirs(transformers_folder)
    text = [QUESTION.format(images="<image>")] * 2
    ours = processor(text=text, images=pictures, padding=True)["input_ids"]
    assert ours == expected(text=text, images=pictures, padding=True, padding_side="left")["input_ids"]


def test_layers_that_are_not_selected_are_left_out(tmp_path: Path) -> None:
    write_transformers(tmp_path, layer=-2)
    model, processor = load(tmp_path)
    assert len(model.model.vision_tower.encoder.layers) == 2
    samples = [[picture(90, 50)]]
    torch.testing.assert_close(
        logits(model.eval(), processor, samples), logits(*theirs(tmp_path), samples), atol=1e-4, rtol=0
    )


def test_saved_as_ours_it_is_the_same_model(next_folder: Path, tmp_path: Path) -> None:
    model, processor = load(next_folder)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load(tmp_path)
    samples = [[picture(90, 50)], [picture(20, 20), picture(50, 20)]]
    assert torch.equal(
        logits(again.eval(), processor_again, samples), logits(model.eval(), processor, samples)
    )
    assert processor_again.schema == processor.schema
    assert Encoder(processor_again).after_image == "\n"
    assert again.config.view_config() == processor_again.image_processor.view_config()


def test_the_image_token_is_looked_up_or_added_to_the_tokenizer(
    transformers_folder: Path, next_folder: Path
) -> None:
    _, processor = load(transformers_folder)
    assert processor.image_token == "<image>"
    model, processor = load(next_folder)
    assert processor.image_token == "<|image|>"
    assert processor.image_token_id == model.config.image_token_id == len(processor.tokenizer) - 1


def test_the_row_of_an_added_token_is_the_mean_of_its_pieces_at_every_load(next_folder: Path) -> None:
    (model, processor), (again, _) = load(next_folder), load(next_folder)
    pieces = processor.tokenizer.encode("image")
    assert len(pieces) > 1
    for table, same in (
        (model.get_input_embeddings().weight, again.get_input_embeddings().weight),
        (model.lm_head.weight, again.lm_head.weight),
    ):
        assert len(table) == 320  # of its own tokens and the added one, in whole blocks of 64
        assert torch.equal(table[processor.image_token_id], table[pieces].mean(0))
        assert torch.equal(table, same)


def test_the_chat_template_writes_the_checkpoints_own_image_token(transformers_folder: Path) -> None:
    _, processor = load(transformers_folder)
    content = [{"type": "image"}, {"type": "text", "text": "Hi"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("naming", ["transformers", "next"])
@pytest.mark.parametrize("places", ["", "<image>\n", "<image>", "<image>\n<image>\n"])
def test_training_prompts_have_the_newline_after_images_that_the_weights_have_seen(
    transformers_folder: Path, next_folder: Path, naming: str, places: str
) -> None:
    _, processor = load(transformers_folder if naming == "transformers" else next_folder)
    question = "What colour is the circle?"
    rows = [{"from": "human", "value": places + question}, {"from": "gpt", "value": "red"}]
    pictures = tuple(picture(40, 30, seed=seed) for seed in range(places.count("<image>")))
    sample = Conversation(id="a", images=pictures, messages=chat_messages(rows))
    images = processor.image_token * len(pictures) + "\n" * (len(pictures) > 0)
    text = QUESTION.format(images=images) + "red<|im_end|>\n"
    expected = processor(text=[text], images=[list(pictures)] if pictures else None)["input_ids"][0]
    encoder = Encoder(processor)
    for turns in ("causal", "independent"):
        assert encoder.encode(sample, turns).layout.input_ids == list(expected)
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    assert text.startswith(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))


def changed(source: Path, folder: Path, *, config: Any = None, tensors: Any = None) -> Path:
    """A copy of a checkpoint with values of config.json and tensors replaced; None removes."""
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    raw = json.loads((source / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(raw))
    weights = load_file(source / "model.safetensors") | (tensors or {})
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors")
    return folder


def test_a_tensor_without_a_place_is_named(next_folder: Path, tmp_path: Path) -> None:
    folder = changed(
        next_folder, tmp_path / "x", config={"mm_vision_tower": str(next_folder / "towers" / "siglip-tiny")},
        tensors={"model.mm_projector.4.weight": torch.zeros(2, 2)},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"without a place in our model: model\.mm_projector\.4\.weight;"):
        load(folder)


def test_a_missing_tensor_is_named(transformers_folder: Path, tmp_path: Path) -> None:
    folder = changed(transformers_folder, tmp_path / "x", tensors={"image_newline": None})
    with pytest.raises(UserError, match=r"that are missing: model\.image_newline"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(transformers_folder: Path, tmp_path: Path) -> None:
    folder = changed(transformers_folder, tmp_path / "x", tensors={"image_newline": torch.zeros(5)})
    with pytest.raises(UserError, match=r"image_newline has shape \[5\], config.json wants \[24\]"):
        load(folder)


def test_a_tied_head_is_the_embedding_and_may_not_contradict_it(tmp_path: Path) -> None:
    write_transformers(tmp_path / "tied", tied=True)
    samples = [[picture(90, 50)]]
    expected = logits(*theirs(tmp_path / "tied"), samples)
    embedding = load_file(tmp_path / "tied" / "model.safetensors")["language_model.model.embed_tokens.weight"]
    head = "language_model.lm_head.weight"
    copy = changed(tmp_path / "tied", tmp_path / "copy", tensors={head: embedding.clone()})
    for folder in (tmp_path / "tied", copy):
        model, processor = load(folder)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        torch.testing.assert_close(logits(model.eval(), processor, samples), expected, atol=1e-4, rtol=0)
    other = changed(tmp_path / "tied", tmp_path / "other", tensors={head: embedding + 1})
    with pytest.raises(UserError, match="differs from the embedding"):
        load(other)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"image_aspect_ratio": "pad"}, "the aspect ratio mode is not anyres_max_<number>"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is not 'mlp2x_gelu'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is not false"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "architectures is not LlavaQwenForCausalLM"),
        ({"image_grid_pinpoints": [[31, 30]]}, "image_grid_pinpoints is not multiples of the tower's 30 px"),
        ({"mm_vision_tower": "some/clip"}, "the sizes of the vision tower 'some/clip' are not known"),
    ],
)
def test_what_we_have_no_equal_for_is_refused(
    next_folder: Path, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    tower = {"mm_vision_tower": str(next_folder / "towers" / "siglip-tiny")}
    with pytest.raises(UserError, match=said):
        load(changed(next_folder, tmp_path / "x", config=tower | config))


def test_pinpoints_may_be_a_range_of_tiles(next_folder: Path, tmp_path: Path) -> None:
    tower = {"mm_vision_tower": str(next_folder / "towers" / "siglip-tiny")}
    listed, _ = load(next_folder)
    ranged, _ = load(
        changed(next_folder, tmp_path / "x", config={**tower, "image_grid_pinpoints": "(1x1),...,(4x4)"})
    )
    assert ranged.config.view_config() == listed.config.view_config()


def test_weights_in_shards_are_all_read_and_a_lost_shard_is_named(
    transformers_folder: Path, tmp_path: Path
) -> None:
    folder = changed(transformers_folder, tmp_path / "x")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file)
    places = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    model, _ = load(folder)
    assert torch.equal(model.model.image_newline, weights["image_newline"])
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks b\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("prefixes", "name", "ours"),
    [
        (
            TRANSFORMERS,
            "vision_tower.vision_model.encoder.layers.3.x",
            "model.vision_tower.encoder.layers.3.x",
        ),
        (TRANSFORMERS, "model.vision_tower.encoder.layers.25.x", "model.vision_tower.encoder.layers.25.x"),
        (TRANSFORMERS, "vision_tower.vision_model.encoder.layers.26.x", None),
        (TRANSFORMERS, "model.language_model.norm.weight", "model.language_model.norm.weight"),
        (TRANSFORMERS, "lm_head.weight", "lm_head.weight"),
        (LLAVA_NEXT, "model.norm.weight", "model.language_model.norm.weight"),
        (LLAVA_NEXT, "model.vision_tower.vision_tower.vision_model.post_layernorm.bias", None),
        (LLAVA_NEXT, "model.vision_tower.vision_tower.vision_model.head.attention.in_proj_bias", None),
        (LLAVA_NEXT, "something.else", "something.else"),
    ],
)
def test_names_are_mapped_ignored_or_left_to_be_reported(
    prefixes: dict[str, tuple[str, ...]], name: str, ours: str | None
) -> None:
    assert our_name(name, prefixes, num_layers=26) == ours
