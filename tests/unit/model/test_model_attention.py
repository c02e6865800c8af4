"""Attention backends: packed samples and views stay apart on each, exactly, or the backend refuses."""

import shutil
from typing import Any

import pytest
import torch
from tiny_vlm import model_and_processor, picture, prompt
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen

from infinity_mm.errors import UserError
from infinity_mm.model import attention
from infinity_mm.model.attention import block_mask

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="flex_attention compiles C++ on a CPU"
)
flex = pytest.param(
    "flex_attention", marks=[needs_compiler, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
)


def test_the_mask_is_causal_within_a_sample_and_a_branch() -> None:
    sample_ids = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]])
    branch_ids = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 0]])
    assert block_mask(sample_ids, branch_ids).int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0, 0, 0],
                [0, 0, 0, 1, 0, 0, 0, 0],
                [0, 0, 0, 1, 1, 0, 0, 0],
                [0, 0, 0, 1, 1, 1, 0, 0],
                [0, 0, 0, 1, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 0, 0, 1],
            ]
        ]
    ]


def three_samples(question: str = "What colour is the circle?", seed: int = 0) -> dict[str, Tensor]:
    """A row of three samples, the first and last with an image, the second with two branches; then padding."""
    _, processor = model_and_processor()
    pictures = [picture(64, 40, seed=seed), picture(32, 32, seed=7)]
    texts = [prompt(1, question), "The circle is red.", prompt(1, "red?")]
    parts = [
        processor(images=image, text=[text]) for image, text in zip([pictures[0], None, pictures[1]], texts)
    ]
    lengths = [len(part["input_ids"][0]) for part in parts]
    positions = [list(range(length)) for length in lengths]
    branches = [[0] * length for length in lengths]
    positions[1][-2:] = positions[1][-4:-2]
    branches[1][-4:] = [1, 1, 2, 2]
    row = {
        "input_ids": [token for part in parts for token in part["input_ids"][0]],
        "position_ids": [position for part in positions for position in part],
        "sample_ids": [number for number, length in enumerate(lengths, 1) for _ in range(length)],
        "branch_ids": [branch for part in branches for branch in part],
    }
    images = processor.image_processor(pictures, return_tensors="pt")
    rows = {name: torch.tensor([values + [0] * 3]) for name, values in row.items()}
    return rows | {"pixel_values": images["pixel_values"], "view_shapes": images["view_shapes"]}


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits[0]


@pytest.mark.parametrize("backend", ["eager", "sdpa", "sdpa_float32", flex])
def test_changing_one_packed_sample_moves_no_other_by_a_single_bit(backend: str) -> None:
    model, _ = model_and_processor()
    inputs = three_samples()
    expected = logits(model, inputs)  # with sdpa
    model.set_attn_implementation(backend)
    real = inputs["sample_ids"][0] > 0
    before = logits(model, inputs)
    assert torch.allclose(before[real], expected[real], atol=1e-5)
    for changed in (1, 2, 3):
        own = inputs["sample_ids"][0] == changed
        other = inputs | {"input_ids": inputs["input_ids"].clone()}
        text = own & (other["input_ids"][0] > 20)  # markers and image tokens stay
        other["input_ids"][0, text] = 30 + other["input_ids"][0, text] % 200
        if changed != 2:
            other["pixel_values"] = inputs["pixel_values"].clone()
            first = int((inputs["view_shapes"][:, 0] == 0).sum())
            patches = inputs["view_shapes"][:first, 1:].prod(1).sum()
            part = slice(0, patches) if changed == 1 else slice(patches, None)
            other["pixel_values"][part] += 1
        after = logits(model, other)
        assert (before[own] - after[own]).abs().max() > 0.01
        assert torch.equal(before[real & ~own], after[real & ~own])


def test_branches_of_one_sample_do_not_see_each_other() -> None:
    model, _ = model_and_processor()
    inputs = three_samples()
    before = logits(model, inputs)
    first, second = (inputs["branch_ids"][0] == branch for branch in (1, 2))
    inputs["input_ids"][0, first] += 1
    after = logits(model, inputs)
    assert torch.equal(before[second], after[second])
    assert (before[first] - after[first]).abs().max() > 0.01


attend: Any = functional.scaled_dot_product_attention


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    _: Tensor,
    longest: int,
    __: int,
    **options: Any,
) -> Tensor:
    """What `varlen_attn` computes, span by span."""
    lengths = starts.diff().tolist()
    assert max(lengths) == longest
    out = [
        attend(
            *(x.transpose(0, 1) for x in lines),
            is_causal=options["window_size"] == (-1, 0),
            scale=options["scale"],
        ).transpose(0, 1)
        for lines in zip(query.split(lengths), key.split(lengths), value.split(lengths))
    ]
    return torch.cat(out)


def test_spans_give_what_the_mask_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel needs a GPU; a reference in its place shows that spans, heads and causality are what it is told.
    model, _ = model_and_processor()
    inputs = three_samples()
    inputs["branch_ids"].zero_()
    expected = logits(model, inputs)
    monkeypatch.setattr(attention, "varlen_problem", lambda *_: None)
    monkeypatch.setattr(varlen, "varlen_attn", with_window(reference_varlen))
    model.set_attn_implementation("varlen")
    real = inputs["sample_ids"][0] > 0
    assert torch.allclose(logits(model, inputs)[real], expected[real], atol=1e-5)
    text = {"input_ids": inputs["input_ids"][:, :9].expand(2, -1)}
    alone = logits(model, text)
    model.set_attn_implementation("sdpa")
    assert torch.allclose(alone, logits(model, text), atol=1e-5)


def test_the_varlen_kernel_gets_one_half_precision_type_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = model_and_processor()
    inputs = three_samples()
    inputs["branch_ids"].zero_()
    seen: set[torch.dtype] = set()

    def kernel(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.update((query.dtype, key.dtype, value.dtype))
        return reference_varlen(query, key, value, *args, **options)

    monkeypatch.setattr(attention, "varlen_problem", lambda *_: None)
    monkeypatch.setattr(varlen, "varlen_attn", with_window(kernel))
    model.set_attn_implementation("varlen")
    with torch.autocast("cpu", torch.bfloat16):
        logits(model, inputs)
    assert seen == {torch.bfloat16}


def with_window(kernel: Any) -> Any:
    """`kernel` with the parameter by which torch's own is recognised."""

    def varlen_attn(*args: Any, scale: float, window_size: tuple[int, int]) -> Tensor:
        return kernel(*args, scale=scale, window_size=window_size)

    return varlen_attn


def test_varlen_says_why_it_cannot_run_here() -> None:
    model, _ = model_and_processor()
    model.set_attn_implementation("varlen")
    ids = torch.tensor([[50, 51, 52]])
    with pytest.raises(UserError, match="runs on a CUDA device, not on cpu"):
        logits(model, {"input_ids": ids})
    with pytest.raises(UserError, match="reads no padding mask"):
        logits(model, {"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1]])})
    with pytest.raises(UserError, match="independent turns"):
        logits(
            model, {"input_ids": ids, "sample_ids": torch.ones_like(ids), "branch_ids": torch.arange(3)[None]}
        )


def test_varlen_needs_half_precision() -> None:
    assert "not in float32" in str(attention.varlen_problem(torch.device("cuda"), torch.float32))
    assert attention.varlen_problem(torch.device("cuda"), torch.bfloat16) is None


def test_flex_attention_does_not_train_on_a_cpu() -> None:
    model, _ = model_and_processor()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UserError, match="no backward pass on a CPU"):
        model(input_ids=torch.tensor([[50, 51, 52]]))


def test_a_mask_and_sample_ids_exclude_each_other() -> None:
    model, _ = model_and_processor()
    ids = torch.tensor([[50, 51, 52]])
    with pytest.raises(UserError, match="both attention_mask and sample_ids"):
        logits(
            model,
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "sample_ids": torch.ones_like(ids)},
        )


def test_an_unknown_backend_refuses_packed_rows() -> None:
    model, _ = model_and_processor()
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    ids = torch.tensor([[50, 51, 52]])
    with pytest.raises(UserError, match="cannot be kept apart with attn_implementation='flash_attention_2'"):
        logits(model, {"input_ids": ids, "sample_ids": torch.ones_like(ids)})
