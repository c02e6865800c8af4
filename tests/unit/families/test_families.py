"""Every stock family: rows equal the stock processor's, packing is exact, and the loss is the stock model's own."""

import pickle
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_families import NAMES, THREE, config, conversation, picture, processor
from torch import Tensor
from transformers import AutoModelForImageTextToText

from infinity_mm.data.conversation import Conversation, Message, Outline, keep_exchanges
from infinity_mm.data.encode import IGNORE, Encoded
from infinity_mm.data.packing import Packed, pack
from infinity_mm.errors import UserError
from infinity_mm.families import FAMILIES, family_of
from infinity_mm.families.base import Limits, part_of
from infinity_mm.model.attention import DENSE
from infinity_mm.training.loss import local_loss

STOCK: dict[str, Any] = {name: FAMILIES[name] for name in NAMES}

each_family = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Qwen2.5-VL's vision tower makes many tiny products; with several threads each waits for the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def encoder(name: str) -> Any:
    return STOCK[name].encoder(processor(name))


@cache
def module(name: str) -> Any:
    """In evaluation mode, without a checkpoint in between."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config(name))
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return STOCK[name].trainable(model).eval()


def samples(name: str, *conversations: Conversation) -> list[Encoded]:
    return [encoder(name).encode(c, "causal") for c in conversations]


def packed(name: str, *rows: list[Encoded]) -> Packed:
    longest = max(sum(len(sample.layout) for sample in row) for row in rows)
    return pack(rows, longest + 3, encoder(name).pad_id)


@torch.no_grad()
def logits(name: str, batch: Packed) -> Tensor:
    return module(name)(
        input_ids=batch.input_ids,
        sample_ids=batch.sample_ids,
        branch_ids=batch.branch_ids,
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        view_shapes=batch.view_shapes,
    ).logits


def typed(c: Conversation) -> list[dict[str, Any]]:
    """The conversation as people write it for a stock processor, images first."""
    messages = [{"role": m.role, "content": [{"type": "text", "text": m.text}]} for m in c.messages]
    messages[0]["content"] = [{"type": "image"}] * len(c.images) + messages[0]["content"]
    return messages


def stock_inputs(name: str, c: Conversation) -> Any:
    """What the family's own processor makes of the conversation."""
    text = processor(name).apply_chat_template(typed(c), tokenize=False)
    if name == "llava_onevision":  # its template has a blank that its generation prompt has not
        text = text.replace("assistant \n", "assistant\n")
    images = {"images": [list(c.images)]} if c.images else {}
    return processor(name)(text=[text], return_tensors="pt", **images)


@each_family
@pytest.mark.parametrize("c", THREE, ids=lambda c: c.id)
def test_the_ids_are_those_of_the_stock_processor(name: str, c: Conversation) -> None:
    assert samples(name, c)[0].layout.input_ids == stock_inputs(name, c).input_ids[0].tolist()


@each_family
def test_labels_are_the_answers_and_the_token_that_ends_each(name: str) -> None:
    layout = samples(name, THREE[0])[0].layout
    tokenizer = processor(name).tokenizer
    end = tokenizer.eos_token
    labelled = [i for i in layout.labels if i != IGNORE]
    assert tokenizer.decode(labelled).replace(" ", "") == f"Aredcircle.{end}red{end}"
    assert all(label in (IGNORE, token) for label, token in zip(layout.labels, layout.input_ids))
    # What stands before the first label is what a server sends for the first question, token by token.
    asked = replace(THREE[0], messages=THREE[0].messages[:1])
    prompt = processor(name).apply_chat_template(typed(asked), tokenize=False, add_generation_prompt=True)
    sent = processor(name)(text=[prompt], images=[list(asked.images)]).input_ids[0]
    first = next(i for i, label in enumerate(layout.labels) if label != IGNORE)
    assert layout.input_ids[:first] == list(sent)


@each_family
def test_text_is_never_read_as_a_special_token(name: str) -> None:
    end, image = processor(name).tokenizer.eos_token, processor(name).image_token
    question = f"{end} and {image}?" if name != "internvl" else f"{end}?"
    c = Conversation(id="h", images=(), messages=(Message("user", question), Message("assistant", end)))
    if "<image>" in question:  # there the placeholder of our own format has the same name
        c = replace(c, messages=(Message("user", end), Message("assistant", image)))
    layout = samples(name, c)[0].layout
    assert encoder(name).image_id not in layout.input_ids
    assert sum(label == processor(name).tokenizer.eos_token_id for label in layout.labels) == 1


@each_family
def test_the_loss_is_the_stock_models_own(name: str) -> None:
    for c in THREE:
        sample = samples(name, c)[0]
        batch = packed(name, [sample])
        ours = local_loss(module(name), batch, total_weight=batch.num_labels).loss.detach()
        inputs = stock_inputs(name, c)
        theirs = module(name).model(**inputs, labels=torch.tensor([sample.layout.labels])).loss.detach()
        assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


@each_family
def test_packing_is_exact(name: str) -> None:
    """The claim `packs`: the same loss as padded rows, and no sample sees its neighbour."""
    three = samples(name, *THREE)
    rows = packed(name, *([sample] for sample in three))
    together = packed(name, three)
    weight = rows.num_labels
    losses = [local_loss(module(name), b, total_weight=weight).loss.detach() for b in (rows, together)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-5)

    other = samples(name, replace(THREE[0], images=(picture(99),)), *THREE[1:])
    first = len(three[0].layout)
    before, after = logits(name, together), logits(name, packed(name, other))
    assert (before[0, :first] - after[0, :first]).abs().max() > 1e-2
    assert (before[0, first:] - after[0, first:]).abs().max() == 0.0


@each_family
@pytest.mark.parametrize("backend", [b for b in DENSE if b != "sdpa"])
def test_packing_is_exact_with_every_backend_that_reads_a_mask(name: str, backend: str) -> None:
    rows = [samples(name, *THREE), samples(name, replace(THREE[0], images=(picture(99),)), *THREE[1:])]
    first = len(rows[0][0].layout)
    wanted = logits(name, packed(name, rows[0]))
    module(name).model.set_attn_implementation(backend)
    try:
        before, after = (logits(name, packed(name, row)) for row in rows)
    finally:
        module(name).model.set_attn_implementation("sdpa")
    assert (before[0, first:] - after[0, first:]).abs().max() == 0.0
    assert (before - wanted)[0, :-3].abs().max() < 1e-4  # the last three are padding


def test_a_backend_without_a_mask_is_refused() -> None:
    module("qwen3_vl").model.config.get_text_config()._attn_implementation = "flex_attention"
    try:
        with pytest.raises(UserError, match="'flex_attention' reads no mask of packed rows"):
            logits("qwen3_vl", packed("qwen3_vl", samples("qwen3_vl", THREE[2])))
    finally:
        module("qwen3_vl").model.set_attn_implementation("sdpa")


@each_family
def test_branches_equal_separate_samples(name: str) -> None:
    c = THREE[0]
    branches = encoder(name).encode(c, "independent")
    alone = samples(name, *(replace(c, messages=c.messages[i : i + 2]) for i in range(0, len(c.messages), 2)))
    losses = [
        local_loss(module(name), packed(name, *rows), total_weight=1.0).loss.detach()
        for rows in ([[branches]], [[sample] for sample in alone])
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-4)
    assert len(branches.layout) < sum(len(sample.layout) for sample in alone)
    assert max(branches.layout.branch_ids) == 2


@each_family
def test_a_text_only_batch_reaches_every_parameter(name: str) -> None:
    """Or processes that share gradients would wait for each other."""
    model = module(name)
    model.train()
    local_loss(model, packed(name, samples(name, THREE[2])), total_weight=1).loss.backward()
    model.eval()
    without = {key for key, p in model.model.named_parameters() if p.grad is None}
    model.zero_grad(set_to_none=True)
    idle = STOCK[name].idle(config(name))
    assert without == {key for key, _ in model.model.named_parameters() if key.startswith(idle)}


@pytest.mark.parametrize(
    ("taken", "idle_layers"), [(-1, []), (-2, [1]), (1, [1]), ([0, -3], [0, 1]), ([1, 2], [])]
)
def test_layers_after_the_one_whose_features_are_taken_are_idle(taken: Any, idle_layers: list[int]) -> None:
    onevision = config("llava_onevision")
    onevision.vision_feature_layer = taken
    idle = STOCK["llava_onevision"].idle(onevision)
    assert [n for n in range(2) if f"model.vision_tower.encoder.layers.{n}." in idle] == idle_layers


@each_family
def test_every_parameter_belongs_to_one_part(name: str) -> None:
    found = {part_of(key, STOCK[name].parts) for key, _ in module(name).model.named_parameters()}
    assert found == {"vision_tower", "connector", "language_model"}


@settings(max_examples=12)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=2),
    name=st.sampled_from(NAMES),
)
def test_plans_count_what_the_processor_makes_and_the_model_takes(
    name: str, sizes: list[tuple[int, int]]
) -> None:
    images = [Image.new("RGB", size, "red") for size in sizes]
    c = Conversation(id="p", images=tuple(images), messages=conversation("Q", "A").messages)
    sample = samples(name, c)[0]
    assert sample.pixel_values is not None
    assert sample.view_shapes is not None
    assert len(sample.pixel_values) == int(sample.view_shapes[:, 1:3].prod(dim=1).sum())
    assert sample.layout.input_ids == stock_inputs(name, c).input_ids[0].tolist()
    assert logits(name, packed(name, [sample])).isfinite().all()  # it counts tokens and features


@each_family
@pytest.mark.parametrize("turns", ["causal", "independent"])
def test_rows_are_planned_without_pixels(name: str, turns: Any) -> None:
    """Every number of exchanges costs what encoding it gives."""
    box = "<|region 0 0.25 0.5 1 1|>"
    for c in (*THREE, replace(THREE[0], messages=(*THREE[0].messages[:3], Message("assistant", box)))):
        outline = Outline(id=c.id, image_sizes=tuple(image.size for image in c.images), messages=c.messages)
        cost = encoder(name).measure(outline, turns)
        for number in range(1, len(cost.tokens)):
            num_images = sum(cost.images[: number + 1])
            images = encoder(name).image_costs(outline.image_sizes[:num_images])
            sample = encoder(name).encode(keep_exchanges(c, number), turns)
            assert len(sample.layout) == sum(cost.tokens[: number + 1]) + sum(i.tokens for i in images)
            shapes = [] if sample.view_shapes is None else sample.view_shapes[:, 1:3].tolist()
            assert [list(shape) for i in images for shape in i.view_shapes] == shapes


@each_family
def test_measurements_change_with_the_template(name: str) -> None:
    other = pickle.loads(pickle.dumps(processor(name)))
    other.chat_template += "{# changed #}"
    assert STOCK[name].encoder(other).text_fingerprint != encoder(name).text_fingerprint
    assert STOCK[name].vision_cost(config(name))(2, 4) > STOCK[name].vision_cost(config(name))(2, 2) > 0


@each_family
def test_encoders_can_be_sent_to_worker_processes(name: str) -> None:
    again = pickle.loads(pickle.dumps(encoder(name)))
    assert again.encode(THREE[1], "causal").layout == samples(name, THREE[1])[0].layout


def test_three_axes_of_positions_are_those_of_the_stock_model() -> None:
    for name in ("qwen2_5_vl", "qwen3_vl"):
        for c in THREE[:2]:
            inputs = stock_inputs(name, c)
            theirs, _ = module(name).model.model.get_rope_index(
                inputs.input_ids, inputs.mm_token_type_ids, inputs.image_grid_thw
            )
            batch = packed(name, samples(name, c))
            ours = STOCK[name].positions(config(name), batch.input_ids, batch.position_ids, batch.view_shapes)
            length = theirs.shape[-1]
            assert torch.equal(ours[..., :length], theirs)


def test_a_picture_too_long_to_resize_is_refused() -> None:
    with pytest.raises(UserError, match="1608x8 px"):
        STOCK["qwen3_vl"].plan(processor("qwen3_vl"), [(201 * 8, 8)])


@pytest.mark.parametrize(
    ("name", "limits", "num_rows"),
    [
        ("qwen2_5_vl", Limits(max_pixels=16 * 16), 16),
        ("qwen3_vl", Limits(max_pixels=16 * 16), 16),
        ("smolvlm", Limits(max_slices=0), 1),
        ("smolvlm", Limits(max_slices=3), 1),
        ("smolvlm", Limits(max_slices=4), 5),
        ("llava_onevision", Limits(max_slices=1), 2),
        ("llava_onevision", Limits(max_slices=4), 5),
        ("internvl", Limits(max_slices=0), 1),
        ("internvl", Limits(max_slices=3), 1),
        ("internvl", Limits(max_slices=4), 5),
    ],
)
def test_limits_bound_what_an_image_becomes(name: str, limits: Limits, num_rows: int) -> None:
    limited = pickle.loads(pickle.dumps(processor(name)))
    STOCK[name].limit(module(name).model, limited, limits)
    sample = (
        STOCK[name]
        .encoder(limited)
        .encode(Conversation(id="l", images=(picture(1, 64, 64),), messages=THREE[2].messages), "causal")
    )
    assert sample.pixel_values is not None
    assert len(sample.pixel_values) == num_rows
    if name == "llava_onevision":
        module(name).model.config.image_grid_pinpoints = config(name).image_grid_pinpoints


def test_a_limit_that_a_family_has_no_place_for_is_refused() -> None:
    with pytest.raises(UserError, match="max_slices is given, but qwen3_vl"):
        STOCK["qwen3_vl"].limit(None, processor("qwen3_vl"), Limits(max_slices=4))
    with pytest.raises(UserError, match="max_pixels is given, but internvl"):
        STOCK["internvl"].limit(None, processor("internvl"), Limits(max_pixels=4))
    with pytest.raises(UserError, match="leaves no way to cut"):
        STOCK["llava_onevision"].limit(None, processor("llava_onevision"), Limits(max_slices=0))


def test_boxes_are_written_in_the_familys_own_units() -> None:
    text = "<|region 0 0.25 0.5 1 1|>"
    c = Conversation(
        id="b", images=(picture(1, 32, 16),), messages=(Message("user", "Where?"), Message("assistant", text))
    )
    written = {
        name: processor(name).tokenizer.decode([i for i in samples(name, c)[0].layout.labels if i != IGNORE])
        for name in NAMES
    }
    assert '{"bbox_2d": [8, 8, 32, 16]}' in written["qwen2_5_vl"]
    assert '{"bbox_2d": [250, 500, 1000, 1000]}' in written["qwen3_vl"]
    assert "<box>[[250, 500, 1000, 1000]]</box>" in written["internvl"]
    assert "[250, 500, 1000, 1000]" in written["idefics3"]
    assert "[250, 500, 1000, 1000]" in written["smolvlm"]
    assert "[0.25, 0.50, 1.00, 1.00]" in written["llava_onevision"]


@settings(max_examples=24)
@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    coords=st.lists(st.integers(0, 1_000_000), min_size=4, max_size=4).map(lambda n: [x / 1e6 for x in n]),
    name=st.sampled_from(NAMES),
)
def test_boxes_and_points_decode_to_within_half_a_unit_whatever_the_picture_was_resized_to(
    name: str, size: tuple[int, int], coords: list[float]
) -> None:
    left, top, right, bottom = coords
    text = f"<|region 0 {left:.6f} {top:.6f} {right:.6f} {bottom:.6f}|> <|region 0 {left:.6f} {top:.6f}|>"
    image = Image.new("RGB", size, "red")
    c = Conversation(id="b", images=(image,), messages=(Message("user", "?"), Message("assistant", text)))
    labels = [i for i in samples(name, c)[0].layout.labels if i != IGNORE]
    answer = re.sub("bbox_2d|point_2d", "", processor(name).tokenizer.decode(labels))
    written = [float(number) for number in re.findall(r"[0-9.]*[0-9]", answer)]
    if name == "qwen2_5_vl":  # pixels of what the processor really makes of the picture
        images = processor(name).image_processor
        _, rows, columns = images(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
        sides, unit = (columns * images.patch_size, rows * images.patch_size), 1.0
    elif name == "llava_onevision":
        sides, unit = (1, 1), 0.01
    else:
        sides, unit = (1000, 1000), 1.0
    wanted = [value * side for value, side in zip([*coords, left, top], sides * 3)]
    assert written == pytest.approx(wanted, abs=unit / 2 + 1e-9)


def test_sizes_of_pictures_are_whole_numbers_whatever_type_the_pixels_are_of() -> None:
    """In bfloat16 1,333 is 1,336, and a picture has another number of tokens."""
    pixel_values = torch.zeros(2, 3 * 16 * 16, dtype=torch.bfloat16)
    view_shapes = torch.tensor([[0, 1, 1, 1333, 999, 1], [0, 1, 1, 1333, 999, 1]])
    inputs = STOCK["llava_onevision"].inputs(config("llava_onevision"), pixel_values, view_shapes)
    assert inputs["image_sizes"].tolist() == [[1333, 999]]
    assert inputs["batch_num_images"] == [1]


def test_a_folder_that_no_family_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    with pytest.raises(UserError, match=r"no family knows; the nearest is qwen3_vl"):
        family_of(tmp_path)
