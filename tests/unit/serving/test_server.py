"""Starting, waiting for and stopping a server; vLLM's place is taken by a small one with a child of its own."""

import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.engines.model_files import SHIPPED
from infinity_mm.errors import UserError
from infinity_mm.serving import plugin, server
from infinity_mm.serving.server import ServeConfig, curl_example, running, serve_command

SMALL_SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if self.path == "/health" and Handler.asked > 1 else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
open("child", "w").write(str(child.pid))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
ENDS_AT_ONCE = "import sys; sys.exit(3)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def small_server(port: int, code: str = SMALL_SERVER) -> list[str]:
    return [sys.executable, "-S", "-c", code, str(port)]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends(pid: int) -> bool:
    """A killed process is gone when the kernel comes to it."""
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that a build of vLLM is installed: its version, or None for the distribution of another name."""

    def pretend(version: str | None) -> None:
        def answer(name: str) -> str:
            assert name == "vllm"
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
        monkeypatch.setattr(server.metadata, "version", answer)

    return pretend


def test_a_server_is_waited_for_and_gone_afterwards_with_its_children(tmp_path: Path) -> None:
    port = free_port()
    with running(
        small_server(port), f"http://127.0.0.1:{port}", environment=os.environ, timeout_s=60, cwd=tmp_path
    ) as process:
        child = int((tmp_path / "child").read_text())
        assert process.poll() is None
        assert is_alive(child)
    assert process.returncode == -signal.SIGTERM
    assert ends(child)


def test_a_server_that_ends_early_is_reported_with_its_exit_code() -> None:
    port = free_port()
    command = small_server(port, ENDS_AT_ONCE)
    with (
        pytest.raises(UserError, match="exit code 3 before it was ready"),
        running(command, f"http://127.0.0.1:{port}", environment=os.environ, timeout_s=60),
    ):
        pass


def test_a_server_that_never_answers_is_given_up_and_ended(tmp_path: Path) -> None:
    port = free_port()
    silent = "open('pid', 'w').write(str(__import__('os').getpid())); __import__('time').sleep(600)"
    with (
        pytest.raises(UserError, match="not ready after 1 s"),
        running(
            small_server(port, silent),
            f"http://127.0.0.1:{port}",
            environment=os.environ,
            timeout_s=1,
            cwd=tmp_path,
        ),
    ):
        pass
    pid_file = tmp_path / "pid"
    assert not pid_file.exists() or ends(int(pid_file.read_text()))


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals as in a terminal, also where the tests run in the background and inherit that they are ignored."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_says_where_and_ends_with_the_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signal_number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    monkeypatch.setattr(server, "serve_command", lambda config: small_server(config.port))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("curl"):
            threading.Timer(0.2, os.kill, (os.getpid(), signal_number)).start()

    assert server.serve(ServeConfig(model="nano-teacher", port=port), say=say) == 0
    assert f"nano-teacher is served at http://127.0.0.1:{port}/v1 after " in said[1]
    assert said[-1] == "the server has ended"
    assert ends(int((tmp_path / "child").read_text()))


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
            server.serve(ServeConfig(model="nano-teacher", port=port), say=print)


def test_a_gpu_build_is_started_by_its_own_command_with_vllms_defaults(installed: Any) -> None:
    installed("0.32.0")
    command = serve_command(ServeConfig(model="nano-teacher", vllm_args=("--max-model-len", "2048")))
    assert command == [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(SHIPPED["nano-teacher"])),
        *("--served-model-name", "nano-teacher", "--host", "127.0.0.1", "--port", "8000"),
        *("--max-model-len", "2048"),
    ]


@pytest.mark.parametrize(
    ("version", "start"),
    [
        (None, ["vllm.entrypoints.openai.api_server", "--model"]),
        ("0.32.0+cpu", ["vllm.entrypoints.cli.main", "serve"]),
    ],
)
def test_a_cpu_build_computes_in_float32_and_does_not_compile(
    installed: Any, version: str | None, start: list[str]
) -> None:
    installed(version)
    command = serve_command(ServeConfig(model="org/name", vllm_args=("--dtype", "bfloat16")))
    assert command[2:5] == [*start, "org/name"]
    assert command[-5:] == ["--dtype", "float32", "--enforce-eager", "--dtype", "bfloat16"]


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install vllm infinity-mm"):
        serve_command(ServeConfig(model="nano-teacher"))


def test_a_path_without_a_model_is_refused(installed: Any, tmp_path: Path) -> None:
    installed("0.32.0")
    with pytest.raises(UserError, match="there is no model in"):
        serve_command(ServeConfig(model=str(tmp_path)))


def test_the_curl_line_holds_a_whole_request() -> None:
    words = shlex.split(curl_example(ServeConfig(model="me/my model", host="0.0.0.0", port=81)))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:81/v1/chat/completions"]
    body = json.loads(words[-1])
    assert body["model"] == "me/my model"
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_the_plugin_registers_what_checkpoints_name_and_may_be_called_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, str]] = []
    fake: Any = ModuleType("vllm")
    fake.ModelRegistry = SimpleNamespace(register_model=lambda *names: calls.append(names))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    plugin.register()
    plugin.register()
    named = json.loads((SHIPPED["nano-teacher"] / "config.json").read_text())["architectures"]
    assert calls == [(named[0], plugin.BACKEND)] * 2


def test_the_package_declares_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {
        "infinity_mm": f"{plugin.__name__}:{plugin.register.__name__}"
    }


def test_the_command_hands_unknown_options_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServeConfig] = []

    def fake_serve(config: ServeConfig, **_: object) -> int:
        seen.append(config)
        return 7

    monkeypatch.setattr(server, "serve", fake_serve)
    words = ["serve", "nano-teacher", "--port", "81", "--max-model-len", "2048", "--trust-remote-code"]
    assert CliRunner().invoke(app, words).exit_code == 7
    vllm_args = ("--max-model-len", "2048", "--trust-remote-code")
    assert seen == [ServeConfig(model="nano-teacher", port=81, vllm_args=vllm_args)]


@pytest.mark.parametrize("options", [[], ["--to", "llava", "--with-code"]])
def test_export_wants_either_a_format_or_the_code(options: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--out", str(tmp_path / "out"), *options])
    assert isinstance(result.exception, UserError)
    assert "and not both" in str(result.exception)
