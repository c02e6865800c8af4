"""Processor, memory, shared memory, disk, open files, fonts."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infinity_mm.doctor.finding import Asked, Finding, ok, problem, warning

_GIB = 2**30
_LOW_MEMORY = 4 * _GIB
_LOW_SHM = 2 * _GIB
"""Ray keeps its objects there, data loaders their batches."""
_LOW_DISK, _NO_DISK = 20 * _GIB, 1 * _GIB
_FEW_FILES = 8192
"""Ray opens thousands of sockets; a server asked by 256 journeys a few hundred."""


def cpu(asked: Asked) -> Iterator[Finding]:
    """Cores that may be used, and instructions that decide how fast bfloat16 is."""
    cores, usable = os.cpu_count() or 1, usable_cores()
    flags = cpu_flags()
    fast = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    text = f"{usable} of {cores} cores, {', '.join(fast) or 'no vector extensions known'}"
    if usable < cores and not os.environ.get("OMP_NUM_THREADS"):
        fix = f"export OMP_NUM_THREADS={usable}"
        yield warning("cpu", f"{text}; libraries that count cores start {cores} threads", fix)
    else:
        yield ok("cpu", text)
    if sys.platform == "linux" and flags and not {"avx512_bf16", "amx_bf16"} & flags:
        yield ok("bfloat16", "slow on this processor: training and engines on it compute in float32")


def usable_cores() -> int:
    """Cores of this process: its affinity, and the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdecimal() and period.strip().isdecimal():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def cpu_flags() -> frozenset[str]:
    """What /proc/cpuinfo says the processor can do; empty where there is none."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def memory(asked: Asked) -> Iterator[Finding]:
    """What may still be used."""
    available = available_memory()
    if available is None:
        yield ok("memory", "unknown on this system")
    elif available < _LOW_MEMORY:
        fix = "stop other programs, or lower images_in_flight and executor.num_workers"
        yield warning("memory", f"{available / _GIB:.1f} GiB available", fix)
    else:
        yield ok("memory", f"{available / _GIB:.1f} GiB available")


def available_memory() -> int | None:
    """Bytes, the container's limit included; None where it cannot be known."""
    found = None
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) * 1024
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        left = max(0, int(limit) - int(used))
        found = left if found is None else min(found, left)
    return found


def shared_memory(asked: Asked) -> Iterator[Finding]:
    """A container often has 64 MB of it, and Ray then falls back to the disk."""
    if not os.path.isdir("/dev/shm"):
        return
    size, free = shutil.disk_usage("/dev/shm").total, shutil.disk_usage("/dev/shm").free
    text = f"{free / _GIB:.1f} of {size / _GIB:.1f} GiB free in /dev/shm"
    if free < _LOW_SHM:
        yield warning(
            "shared memory", text, "docker run --shm-size=8g, or in Kubernetes an emptyDir of medium Memory"
        )
    else:
        yield ok("shared memory", text)


def open_files(asked: Asked) -> Iterator[Finding]:
    """The soft limit of this shell."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    if not unlimited and soft < _FEW_FILES:
        most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        yield warning("open files", f"at most {soft}", f"ulimit -n {most}")
    else:
        yield ok("open files", "no limit" if unlimited else f"at most {soft}")


def run_dir(asked: Asked) -> Iterator[Finding]:
    """Can the run be written, and is there room?"""
    from infinity_mm.storage import files

    place = asked.run_dir or os.getcwd()
    if "://" in place:
        probe = files.join(place, f".infinity-mm-doctor-{secrets.token_hex(4)}")
        try:
            files.write(probe, b"x")
            files.remove(probe)
        except ImportError as error:
            yield problem(
                "run dir", f"{place}: {error}", "install what it names, for example pip install s3fs"
            )
        except Exception as error:  # every store has its own errors
            said = f"{place}: {type(error).__name__}: {error}"
            yield problem("run dir", said, "check the address, the credentials and the permission to write")
        else:
            yield ok("run dir", f"{place} can be written")
        return
    folder = _existing(Path(place).expanduser().absolute())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield problem(
            "run dir", f"{folder}: {error.strerror}", f"choose another run_dir, or chmod u+w {folder}"
        )
        return
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {free / _GIB:.1f} GiB free"
    if free < _NO_DISK:
        yield problem("run dir", text, "free some room, or choose a run_dir on another disk")
    elif free < _LOW_DISK:
        yield warning(
            "run dir", text, "published files hold the images: plan for the size of your images and more"
        )
    else:
        yield ok("run dir", text)


def fonts(asked: Asked) -> Iterator[Finding]:
    """The drawn world writes with the font that comes inside Pillow, which needs FreeType to draw it."""
    from PIL import features

    if features.check("freetype2"):
        yield ok("fonts", "Pillow draws text; the drawn world brings its font")
    else:
        yield problem(
            "fonts",
            "this build of Pillow has no FreeType: signs, charts and tables cannot be drawn",
            "pip install --force-reinstall --only-binary :all: pillow",
        )


def _existing(path: Path) -> Path:
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
