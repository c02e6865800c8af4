"""What the engine kind `vllm` decides without vLLM: its arguments, its shares of a GPU, its arithmetic of choices."""

import asyncio
import importlib.util
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nano import Drawn

from infinity_mm.config import build, to_plain
from infinity_mm.engines.spec import EngineConfig
from infinity_mm.engines.vllm import VllmSpec, check_shares, engine_arguments
from infinity_mm.engines.vllm_choices import choice_logprobs, forks
from infinity_mm.errors import UserError
from infinity_mm.synth.config import EnginesConfig, SynthConfig


def test_a_yaml_section_becomes_the_specification() -> None:
    section = {"kind": "vllm", "model": "org/name", "tensor_parallel_size": 2, "engine_args": {"seed": 1}}
    spec = build(EngineConfig, section).spec()
    assert spec == VllmSpec(model="org/name", tensor_parallel_size=2, engine_args={"seed": 1})


@pytest.mark.parametrize(
    "wrong", [{"tensor_parallel_size": 0}, {"gpu_memory_utilization": 0.0}, {"gpu_memory_utilization": 1.5}]
)
def test_a_wrong_share_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="VllmSpec"):
        VllmSpec(model="m", **wrong)


def test_the_arguments_of_vllm_are_ours_then_the_users() -> None:
    spec = VllmSpec(model="m", tensor_parallel_size=2, engine_args={"enable_prefix_caching": False})
    assert engine_arguments(spec, "/folder", on_cpu=False) == {
        "model": "/folder",
        "dtype": "auto",
        "tensor_parallel_size": 2,
        "max_model_len": None,
        "gpu_memory_utilization": 0.9,
        "limit_mm_per_prompt": {"image": 8, "video": 0},
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "distributed_executor_backend": "mp",
    }
    on_cpu = engine_arguments(VllmSpec(model="m"), "/folder", on_cpu=True)
    assert (on_cpu["dtype"], on_cpu["enforce_eager"]) == ("float32", True)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_how_to_install_it() -> None:
    async def open_it() -> None:
        async with VllmSpec(model="nano-teacher").open(Drawn()):
            pass

    with pytest.raises(UserError, match="pip install vllm"):
        asyncio.run(open_it())


@pytest.mark.parametrize(
    ("shares", "sizes", "gpus", "fits"),
    [
        ([0.9], [1], 0.0, True),  # a CPU, or nothing known
        ([0.9], [1], 1.0, True),
        ([0.9], [1], 0.5, False),
        ([0.45], [1], 0.5, True),
        ([0.45, 0.45], [1, 1], 1.0, True),
        ([0.9, 0.9], [1, 1], 1.0, False),
        ([0.9], [2], 1.0, False),
        ([0.9], [2], 2.0, True),
    ],
)
def test_engines_of_a_worker_fit_on_its_gpus(
    shares: list[float], sizes: list[int], gpus: float, fits: bool
) -> None:
    specs = [
        VllmSpec(model=str(i), gpu_memory_utilization=share, tensor_parallel_size=size)
        for i, (share, size) in enumerate(zip(shares, sizes, strict=True))
    ]
    if fits:
        check_shares(specs, gpus)
    else:
        with pytest.raises(UserError, match="gpus_per_worker"):
            check_shares(specs, gpus)


def test_a_run_whose_engines_want_more_of_a_gpu_than_a_worker_has_is_refused() -> None:
    def config(judge: EngineConfig | None) -> dict[str, Any]:
        engines = EnginesConfig(teacher=EngineConfig(kind="vllm", model="nano-teacher"), judge=judge)
        return {
            "name": "x",
            "run_dir": "/x",
            "read": {"sources": [{"kind": "folder", "path": "/images"}]},
            "engines": to_plain(engines),
            "executor": {"kind": "ray", "gpus_per_worker": 1.0},
        }

    build(SynthConfig, config(None))
    build(SynthConfig, config(EngineConfig(kind="vllm", model="nano-teacher")))  # the same engine, shared
    with pytest.raises(UserError, match=r"2 vLLM engine\(s\) want 1 GPU\(s\) and 1.8 of their memory"):
        build(SynthConfig, config(EngineConfig(kind="vllm", model="other/judge")))


def test_choices_fork_where_several_tokens_may_follow() -> None:
    one, ten, two = (5, 0), (5, 7, 0), (6, 0)
    assert forks([one, ten, two]) == {(): (5, 6), (5,): (0, 7)}
    at_fork = {(): {5: math.log(0.2), 6: math.log(0.2)}, (5,): {0: math.log(0.3), 7: math.log(0.1)}}
    probabilities = [math.exp(value) for value in choice_logprobs([one, ten, two], at_fork)]
    assert probabilities == pytest.approx([0.5 * 0.75, 0.5 * 0.25, 0.5])


@given(
    choices=st.sets(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), min_size=2, max_size=12),
    seed=st.integers(0, 9),
)
def test_the_probabilities_of_the_choices_sum_to_one(choices: set[tuple[int, ...]], seed: int) -> None:
    ids = [(*choice, 0) for choice in sorted(choices)]
    at_fork = {
        begin: {token: -1.0 - (token * (seed + len(begin))) % 5 for token in tokens}
        for begin, tokens in forks(ids).items()
    }
    values = choice_logprobs(ids, at_fork)
    assert sum(math.exp(value) for value in values) == pytest.approx(1)
