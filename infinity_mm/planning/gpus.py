"""How fast a GPU reads and writes tokens of a model of so many parameters: a roofline, with its assumptions in a file.

gpus.yaml + parameters --speeds--> GPU seconds per prompt token, per reply token
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from infinity_mm.config import load_config
from infinity_mm.engines.model_files import SHIPPED
from infinity_mm.errors import explain

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[Bb](?![a-z])")
_ACTIVE = re.compile(r"(?<![A-Za-z0-9])A(\d+(?:\.\d+)?)[Bb](?![a-z])")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU."""

    tflops: float
    """Dense bf16, at peak."""
    bandwidth_gb_s: float
    """Of its memory."""
    memory_gb: float
    usd_per_hour: float


@dataclass(frozen=True, kw_only=True)
class GpuTable:
    """What is assumed; the fields of gpus.yaml."""

    gpus: dict[str, Gpu]
    prefill_share: float = 0.4
    """Of the peak arithmetic, while prompts are read."""
    decode_share: float = 0.6
    """Of the peak bandwidth, while replies are written."""
    concurrency: int = 64
    """Replies a GPU writes at the same time."""

    def __post_init__(self) -> None:
        figures = [value for gpu in self.gpus.values() for value in vars(gpu).values()]
        if min([self.prefill_share, self.decode_share, self.concurrency, *figures]) <= 0:
            raise explain(
                what="a figure in the table of GPUs is not above 0", where="--gpus FILE", fix="correct it"
            )

    def pick(self, names: tuple[str, ...]) -> dict[str, Gpu]:
        """The named ones, all for no names; an unknown name is an error."""
        unknown = [name for name in names if name not in self.gpus]
        if unknown:
            raise explain(
                what=f"there is no GPU `{unknown[0]}` in the table",
                where="--gpu",
                fix=f"one of {', '.join(self.gpus)}, or add it to a file for --gpus",
            )
        return {name: self.gpus[name] for name in names or tuple(self.gpus)}

    def speeds(self, gpu: Gpu, size: Size) -> tuple[float, float]:
        """GPU seconds for one prompt token that must be read, and for one reply token that must be written.

        Prompts are bound by arithmetic, 2 operations per parameter and token. A step of writing reads all weights
        (2 bytes each) and gives one token to each of the replies under way.
        """
        num_gpus = self.needed(gpu, size)
        flops = self.prefill_share * gpu.tflops * 1e12 * num_gpus
        read_s = 2e9 * size.active_b / flops
        weights_s = 2e9 * size.total_b / (self.decode_share * gpu.bandwidth_gb_s * 1e9 * num_gpus)
        return num_gpus * read_s, num_gpus * max(weights_s / self.concurrency, read_s)

    def needed(self, gpu: Gpu, size: Size) -> int:
        """GPUs that hold the weights, with a quarter of the memory left for the cache."""
        number = 1
        while 2 * size.total_b > 0.75 * gpu.memory_gb * number:
            number *= 2
        return number


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters of a model, in billions."""

    total_b: float
    active_b: float
    """Those that a token meets; fewer than all in a mixture of experts."""


def load_gpus(path: Path | None = None) -> GpuTable:
    """The table that ships, or another file of that form."""
    shipped = Path(str(resources.files("infinity_mm.planning").joinpath("gpus.yaml")))
    return load_config(GpuTable, path or shipped)


def size_of(model: str) -> Size | None:
    """From a name such as Qwen2.5-VL-7B-Instruct or Qwen3-VL-30B-A3B; from a folder's weights; else None."""
    name = model.rstrip("/").rpartition("/")[2]
    found = _SIZE.search(name)
    if found is not None:
        active = _ACTIVE.search(name)
        total = float(found.group(1))
        return Size(total_b=total, active_b=float(active.group(1)) if active else total)
    weights = sum(file.stat().st_size for file in SHIPPED.get(model, Path(model)).glob("*.safetensors"))
    return Size(total_b=weights / 2e9, active_b=weights / 2e9) if weights else None
