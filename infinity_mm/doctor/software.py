"""Versions against what pyproject.toml supports, and whether torch fits the GPU."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from infinity_mm.doctor.finding import Asked, Finding, ok, problem, warning

DISTRIBUTION = "infinity-mm"
_NOTED = ("vllm", "torchvision", "timm", "flash-attn", "bitsandbytes")
"""Packages that are not required, but explain a lot when something goes wrong."""


def python(asked: Asked) -> Iterator[Finding]:
    """The interpreter."""
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    found = platform.python_version()
    if Version(found) in SpecifierSet(wanted):
        yield ok("python", f"{found} (supported: {wanted})")
    else:
        yield problem(
            "python", f"{found}, supported is {wanted}", "make an environment with Python 3.11 to 3.13"
        )


def packages(asked: Asked) -> Iterator[Finding]:
    """Every dependency of the package and its extras: installed, and in the supported range?"""
    for requirement, extra in requirements():
        installed = version_of(requirement.name)
        label = f"{requirement.name}{requirement.specifier}"
        if installed is None and extra is None:
            yield problem(requirement.name, "not installed", f"pip install '{label}'")
        elif installed is None:
            missing = f"not installed; needed for {_PURPOSES.get(extra or '', extra)}"
            yield warning(requirement.name, missing, f"pip install 'infinity-mm[{extra}]'")
        elif Version(installed).base_version not in requirement.specifier:
            yield problem(
                requirement.name,
                f"{installed} is not supported ({requirement.specifier})",
                f"pip install '{label}'",
            )
        else:
            yield ok(requirement.name, f"{installed} ({requirement.specifier})")
    found = {name: version_of(name) for name in _NOTED}
    yield ok(
        "also here", ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
    )


_PURPOSES = {"synth": "synthesis", "train": "training logs", "publish": "publishing to the Hub"}


def requirements() -> Iterator[tuple[Requirement, str | None]]:
    """Each dependency once, with the extra it belongs to; those of development are left out."""
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        if requirement.name == DISTRIBUTION:
            continue
        extras = [extra for extra in _PURPOSES if requirement.marker and _is_of(requirement, extra)]
        if requirement.marker is None or extras:
            yield requirement, extras[0] if extras else None


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def version_of(name: str) -> str | None:
    """The installed version, None without one."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_pair(asked: Asked) -> Iterator[Finding]:
    """The two are built for each other: torchvision 0.(n + 15) goes with torch 2.n."""
    torch, vision = version_of("torch"), version_of("torchvision")
    if torch is None or vision is None:
        return
    wanted = Version(torch).minor + 15
    if Version(torch).major == 2 and Version(vision).minor != wanted:
        yield warning(
            "torchvision",
            f"{vision} was not built for torch {torch}",
            f"pip install 'torchvision==0.{wanted}.*' 'torch=={Version(torch).base_version}'",
        )


def gpu(asked: Asked) -> Iterator[Finding]:
    """What the driver shows against what torch was built for."""
    import torch

    rows = nvidia_smi()
    built = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            major, minor = torch.cuda.get_device_capability(index)
            what = f"{index}: {name}, sm_{major}{minor}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
            if free < 0.5 * total:
                fix = "nvidia-smi shows who uses it; CUDA_VISIBLE_DEVICES chooses another"
                yield warning("gpu", what, fix)
            else:
                yield ok("gpu", f"{what}, bf16 {'yes' if major >= 8 else 'no'}")
    elif rows and built is None:
        yield problem(
            "gpu",
            f"the driver shows {rows[0]}, and torch {torch.__version__} is a build without CUDA",
            "pip install --force-reinstall torch  (without the CPU constraints file)",
        )
    elif rows:
        yield problem(
            "gpu",
            f"the driver shows {rows[0]}, torch is built for CUDA {built} and cannot use it",
            "update the driver, or install a torch built for an older CUDA: pytorch.org/get-started",
        )
    elif torch.backends.mps.is_available():
        yield ok("gpu", "Apple GPU (mps)")
    else:
        yield warning(
            "gpu",
            f"none; torch {torch.__version__} computes on the CPU",
            "the drawn world runs as it is; for real models use a machine with a GPU, or --endpoint",
        )


def nvidia_smi() -> list[str]:
    """One line per GPU: name, driver, memory; nothing without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
