"""Ray, the Hugging Face Hub, a model server: what lies outside this process."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from infinity_mm.doctor.finding import Asked, Finding, ok, problem, warning
from infinity_mm.errors import UserError
from infinity_mm.trial.endpoint import check_endpoint, list_models, without_credentials

_RAY_START_S = 120
_RAY_REACH_S = 60
_CONNECT_S = 10
_RAY = """
import os, ray
address = os.environ.get("RAY_ADDRESS")
options = {} if address else {"num_cpus": 1, "include_dashboard": False}
ray.init(address=address, logging_level="ERROR", log_to_driver=False, **options)
found = ray.cluster_resources()
print(f"RESULT {len(ray.nodes())} nodes, {found.get('CPU', 0):.0f} CPUs, {found.get('GPU', 0):.0f} GPUs")
"""


def ray_starts(asked: Asked) -> Iterator[Finding]:
    """Start Ray here, or reach the cluster in RAY_ADDRESS, in a process of its own."""
    if importlib.util.find_spec("ray") is None:
        return  # `packages` has said so
    address = os.environ.get("RAY_ADDRESS")
    where = f"the cluster at RAY_ADDRESS={address}" if address is not None else "a Ray of its own"
    if address and address.startswith("http"):
        text = "RAY_ADDRESS is the address for submitting jobs; no driver can be started with it"
        yield warning(
            "ray", text, "ray job submit, or export RAY_ADDRESS=host:6379 for a driver on the cluster"
        )
        return
    if address is not None and (refused := _refused(address)):
        fix = "start it with `ray start --head`, or `unset RAY_ADDRESS` to work on this machine alone"
        yield problem("ray", f"cannot reach {where}: {refused}", fix)
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RAY],
            capture_output=True,
            text=True,
            timeout=_RAY_REACH_S if address else _RAY_START_S,
        )
        lines = done.stdout.splitlines()
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1][:300]
    except subprocess.TimeoutExpired:
        lines, said = [], "no answer in time"
    result = next((line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT ")), None)
    if result is not None:
        yield ok("ray", f"{where}: {result}")
    elif address:
        fix = "start it with `ray start --head`, or `unset RAY_ADDRESS` to work on this machine alone"
        yield problem("ray", f"cannot reach {where}: {said}", fix)
    else:
        fix = "executor.kind=local needs no Ray; otherwise look into /tmp/ray/session_latest/logs"
        yield problem("ray", f"cannot start {where}: {said}", fix)


def _refused(address: str) -> str | None:
    """Why nothing listens at `host:port`, found out faster than Ray does; None if something does, or for `auto`."""
    host, _, port = address.rpartition(":")
    if not address or (host and not port.isdecimal()):
        return "that is no host:port"
    try:
        if host:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def ray_token(asked: Asked) -> Iterator[Finding]:
    """See `token_findings`, with this process's environment and home."""
    if importlib.util.find_spec("ray") is not None:
        yield from token_findings(os.environ, Path.home())


def token_findings(environment: Mapping[str, str], home: Path) -> Iterator[Finding]:
    """Whether client and cluster will agree on token authentication.

    `ray start` may leave a token behind and then asks for it, while a client sends it only with RAY_AUTH_MODE=token.
    """
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH", home / ".ray" / "auth_token"))
    has_token = bool(environment.get("RAY_AUTH_TOKEN")) or file.is_file()
    mode = environment.get("RAY_AUTH_MODE")
    if mode == "token" and not has_token:
        fix = "ray get-auth-token --generate, and copy the file to every node"
        yield problem("ray token", "RAY_AUTH_MODE=token, and there is no token", fix)
    elif mode is None and has_token:
        fix = "export RAY_AUTH_MODE=token for `ray start` on every node and for `ray job submit`"
        text = (
            "there is a token and RAY_AUTH_MODE is not set: a cluster may say “Missing authentication token”"
        )
        yield warning("ray token", text, fix)
    else:
        yield ok("ray token", f"RAY_AUTH_MODE={mode or 'not set'}, {'a' if has_token else 'no'} token")


def hub(asked: Asked) -> Iterator[Finding]:
    """Who one is on the Hub; without a token nothing is asked, and the token is never shown."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        fix = "unset HF_HUB_OFFLINE to download or publish"
        yield warning("hub", "HF_HUB_OFFLINE is set: only what is in the cache can be used", fix)
        return
    token = huggingface_hub.get_token()
    if token is None:
        yield ok("hub", "no token; one is needed to publish and for gated models (hf auth login)")
        return
    try:
        name = huggingface_hub.whoami(token=token)["name"]
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            yield problem(
                "hub", f"the Hub refuses the token (HTTP {status})", "hf auth login, with a new token"
            )
        else:
            yield warning("hub", f"the Hub answers with HTTP {status}", "try again later")
    except Exception as error:  # every transport has its own errors for "offline"
        fix = "models and data sets must be in the cache, or in local folders, as long as it is so"
        yield warning("hub", f"not reachable ({type(error).__name__})", fix)
    else:
        yield ok("hub", f"logged in as {name}")


def engine(asked: Asked) -> Iterator[Finding]:
    """Which models the server has, and, if it is one, whether that one sees."""
    if asked.endpoint is None:
        return
    shown = without_credentials(asked.endpoint)
    try:
        listing = asyncio.run(list_models(asked.endpoint, api_key_env=asked.api_key_env))
        models = listing.models or ()
        if len(models) == 1:
            served = check_endpoint(asked.endpoint, models[0], api_key_env=asked.api_key_env)
            yield ok("engine", f"{shown}: {models[0]} answered a question about a picture")
            for note in served.notes:
                yield warning("engine", note, "look at its answers on a few pictures: infinity-mm try")
        elif models:
            yield ok("engine", f"{shown}: {len(models)} models: {', '.join(models[:8])}")
        else:
            fix = "infinity-mm try IMAGES --endpoint ... --model NAME tells whether a model answers"
            yield warning("engine", f"{shown} answers and lists no models", fix)
    except UserError as error:
        what, _, rest = str(error).partition("\n  where: ")
        yield problem("engine", what, rest.partition("\n  fix:   ")[2])
