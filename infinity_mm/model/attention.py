"""Attention backends, and how each keeps packed samples apart.

    sample_ids, branch_ids --packed_attention(backend)--> a mask or spans for the language model
    lengths of views ------ separate_views(backend) ----> a mask or spans for the vision tower

| backend | packed rows | views | runs on |
|---|---|---|---|
| eager, sdpa | dense mask | padded, with a mask | everything |
| sdpa_float32 | sample by sample | padded, with a mask | everything; meant for training on a CPU |
| flex_attention | block mask | one sequence with a block mask | GPU; CPU without gradients |
| varlen | cumulative lengths | one sequence with cumulative lengths | GPU, float16 or bfloat16 |

Nothing falls back: a backend that cannot do what it is asked for raises. `varlen` was not run on a GPU here; its tests
put an exact reference in the kernel's place, and the kernel itself is torch's.

Legend: B batch rows, T positions, H heads, P patches of all views, a head width.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from infinity_mm.errors import explain

SDPA_FLOAT32 = "sdpa_float32"
"""Stays in float32 under autocast, for training in bfloat16 on a CPU. Measured with torch 2.13 on a Xeon with AMX: the
backward pass of scaled-dot-product attention on 64 positions with heads 32 wide takes 28 ms in bfloat16 and 5 ms in
float32, so a nano model trains 1.2 times as fast with this backend under bfloat16 autocast. And packed rows sample by
sample: a row of 1,024 positions that holds eight samples takes 29 ms (forward and backward) as one product with a mask,
6 ms as eight products."""
FLEX = "flex_attention"
"""Transformers' name for torch's compiled attention with block masks."""
VARLEN = "varlen"
"""`torch.nn.attention.varlen`: one sequence of spans, no mask at all."""
DENSE = ("eager", "sdpa", SDPA_FLOAT32)
"""Backends that read a dense mask."""
BACKENDS = (*DENSE, FLEX, VARLEN)
"""Backends that keep packed samples apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Where sequences laid end to end begin, in the form that varlen kernels read."""

    starts: Int[Tensor, " S"]
    """int32; the first position of every span, and one behind the last."""
    longest: int
    """Length of the longest span."""


def block_mask(sample_ids_BT: Tensor, branch_ids_BT: Tensor) -> Bool[Tensor, "B 1 T T"]:
    """True where a query (third axis) attends to a key (fourth axis).

    A query attends to earlier positions of its own sample that all branches share or that are of its own branch.
    Padding attends to itself alone: a row of the softmax with nothing to attend to would be NaN.
    """
    T = sample_ids_BT.shape[1]
    query, key = sample_ids_BT[:, :, None], sample_ids_BT[:, None, :]
    query_branch, key_branch = branch_ids_BT[:, :, None], branch_ids_BT[:, None, :]
    same_BTT = (query == key) & (query != 0) & ((key_branch == 0) | (key_branch == query_branch))
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=sample_ids_BT.device).tril_()
    itself_TT = torch.eye(T, dtype=torch.bool, device=sample_ids_BT.device)
    return ((same_BTT & causal_TT) | itself_TT)[:, None]


def packed_attention(
    backend: str, sample_ids_BT: Tensor, branch_ids_BT: Tensor, dtype: torch.dtype
) -> dict[str, Any]:
    """Keyword arguments with which a language model on `backend` attends as `block_mask` says.

    Raises UserError for a backend that cannot.
    """
    if backend in DENSE:
        mask = block_mask(sample_ids_BT, branch_ids_BT)
        if backend == SDPA_FLOAT32:
            return {"attention_mask": mask, "packed_blocks": _blocks(sample_ids_BT, branch_ids_BT)}
        return {"attention_mask": kernel_mask(mask, backend, dtype)}
    if backend == FLEX:
        return {"attention_mask": _flex_mask(sample_ids_BT, branch_ids_BT)}
    if backend == VARLEN:
        if branch_ids_BT.any():
            raise explain(
                what="samples with independent turns share their images between branches, which spans cannot say",
                where="attention backend varlen",
                fix="use flex_attention or sdpa, or turns: causal in the data",
            )
        spans = _sample_spans(sample_ids_BT)
        return {
            "cu_seq_lens_q": spans.starts,
            "cu_seq_lens_k": spans.starts,
            "max_length_q": spans.longest,
            "max_length_k": spans.longest,
        }
    raise explain(
        what=f"packed samples cannot be kept apart with attn_implementation={backend!r}",
        where="InfinityMMModel.forward",
        fix=f"use one of {', '.join(BACKENDS)}",
    )


def kernel_mask(mask: Tensor, backend: str, dtype: torch.dtype) -> Tensor:
    """A 4-D mask in the form the dense kernels add or select by; raises UserError for other backends."""
    if backend not in DENSE:
        raise explain(
            what=f"a 4-D attention mask cannot be used with attn_implementation={backend!r}",
            where="InfinityMMModel.forward",
            fix="pass sample_ids and branch_ids, or load the model with attn_implementation='sdpa' or 'eager'",
        )
    if backend == "eager" and mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


def separate_views(backend: str, lengths: Sequence[int], device: torch.device) -> BlockMask | Spans | None:
    """What keeps views apart that lie end to end in one sequence; None for backends that want a padded batch."""
    if backend == FLEX:
        view_P = torch.repeat_interleave(torch.tensor(lengths, device=device))
        total = len(view_P)

        def same_view(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return view_P[query] == view_P[key]

        return create_block_mask(same_view, 1, None, total, total, device=str(device))
    if backend == VARLEN:
        starts = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        return Spans(starts=starts, longest=max(lengths))
    return None


def check_gradients(backend: str, inputs: Tensor) -> None:
    """Raise UserError where torch has no backward pass."""
    if backend == FLEX and inputs.device.type == "cpu" and inputs.requires_grad:
        raise explain(
            what="flex_attention has no backward pass on a CPU",
            where="attention backend flex_attention",
            fix="train with sdpa on a CPU; flex_attention is for GPUs",
        )


def varlen_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `varlen` cannot run here, or None."""
    try:
        kernel = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    if "scale" not in inspect.signature(kernel).parameters:
        return f"varlen attention of torch {torch.__version__} takes no scale"
    if device.type != "cuda":
        return f"varlen attention runs on a CUDA device, not on {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"varlen attention computes in float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
    return None


_SMALLEST_BLOCK = 48
"""Positions; smaller blocks are computed together with the next, because every call has its own cost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Part of a row that attends to nothing outside."""

    start: int
    """First position."""
    stop: int
    """Behind the last."""
    causal: bool
    """Every position attends to all earlier ones, so that no mask is needed."""


def sdpa_float32_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_blocks: Sequence[Sequence[Block]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' SDPA on float32 copies; the result is in the dtype of `query`.

    With `packed_blocks`, those of every row, each block is computed alone.
    """
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = query.float(), key.float(), value.float()
        if packed_blocks is None or attention_mask is None:
            output, _ = sdpa_attention_forward(module, q, k, v, attention_mask, **kwargs)
            return output.to(query.dtype), None
        outputs: list[Tensor] = []
        for r, blocks in enumerate(packed_blocks):
            parts: list[Tensor] = []
            for block in blocks:
                span = slice(block.start, block.stop)
                at = (slice(r, r + 1), slice(None), span)
                mask = None if block.causal else attention_mask[at][..., span]
                parts.append(sdpa_attention_forward(module, q[at], k[at], v[at], mask, **kwargs)[0])
            outputs.append(torch.cat(parts, dim=1))
    return torch.cat(outputs).to(query.dtype), None


def _blocks(sample_ids_BT: Tensor, branch_ids_BT: Tensor) -> list[list[Block]]:
    """The blocks of every row: samples, small ones together; the padding after the last is a block too."""
    T = sample_ids_BT.shape[1]
    rows: list[list[Block]] = []
    for ids, branches in zip(sample_ids_BT.tolist(), branch_ids_BT.tolist()):
        starts = [0]
        for t in range(1, T):
            if ids[t] != ids[t - 1] and (t - starts[-1] >= _SMALLEST_BLOCK or ids[t] == 0):
                starts.append(t)
        rows.append(
            [
                Block(
                    start=start,
                    stop=stop,
                    causal=ids[start] == ids[stop - 1] != 0 and not any(branches[start:stop]),
                )
                for start, stop in pairwise([*starts, T])
            ]
        )
    return rows


def varlen_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Spans | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within spans; queries, keys and values are (B, H, T, a), the spans run over B * T positions."""
    # Under autocast rotary positions leave queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    problem = varlen_problem(query.device, query.dtype)
    if problem is not None:
        raise explain(what=problem, where="attention backend varlen", fix="use flex_attention or sdpa")
    B, _, T, _ = query.shape
    if attention_mask is not None:
        spans = attention_mask
    elif cu_seq_lens_q is not None and max_length_q is not None:
        spans = Spans(starts=cu_seq_lens_q, longest=max_length_q)
    elif key.shape[2] == T:
        spans = Spans(starts=torch.arange(0, B * T + 1, T, dtype=torch.int32, device=query.device), longest=T)
    else:
        raise explain(
            what="varlen attention has no cache: it trains and scores, it does not generate",
            where="attention backend varlen",
            fix="generate with sdpa",
        )
    groups = query.shape[1] // key.shape[1]
    lines = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    kernel: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    output = kernel(
        lines[0],
        *(x.repeat_interleave(groups, 1) for x in lines[1:]),
        spans.starts,
        spans.starts,
        spans.longest,
        spans.longest,
        scale=scaling,
        **_causal_option(kernel, causal),
    )
    return output.unflatten(0, (B, T)), None


def _causal_option(kernel: Callable[..., Any], causal: bool) -> dict[str, Any]:
    """The argument changed its name: `is_causal` in torch 2.10, `window_size` since."""
    if "window_size" in inspect.signature(kernel).parameters:
        return {"window_size": (-1, 0 if causal else -1)}
    return {"is_causal": causal}


def _flex_mask(sample_ids_BT: Tensor, branch_ids_BT: Tensor) -> BlockMask:
    """`block_mask` as a function of indices."""
    B, T = sample_ids_BT.shape

    def attends(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        sample, branch = sample_ids_BT[b, key], branch_ids_BT[b, key]
        same = (sample_ids_BT[b, query] == sample) & (sample != 0)
        shared = (branch == 0) | (branch_ids_BT[b, query] == branch)
        return (same & shared & (query >= key)) | (query == key)

    return create_block_mask(attends, B, None, T, T, device=str(sample_ids_BT.device))


def _sample_spans(sample_ids_BT: Tensor) -> Spans:
    """Every run of one sample is a span; so is the padding of a row, which nobody reads."""
    begins_BT = torch.ones_like(sample_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = sample_ids_BT[:, 1:] != sample_ids_BT[:, :-1]
    starts = begins_BT.flatten().nonzero().flatten()
    starts = torch.cat([starts, starts.new_tensor([begins_BT.numel()])])
    return Spans(starts=starts.to(torch.int32), longest=int(starts.diff().max()))


AttentionInterface.register(SDPA_FLOAT32, sdpa_float32_forward)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)
AttentionInterface.register(VARLEN, varlen_forward)
