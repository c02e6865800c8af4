"""Is the server there, does it know the model, does the model see? Found out before the first picture is sent.

address, model --GET /models--> name, nearest name --one red square--> Served | UserError with the fix
"""

from __future__ import annotations

import asyncio
import difflib
import importlib.util
import io
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from PIL import Image

from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.engines.openai import OpenAISpec, api_key
from infinity_mm.errors import UserError, explain, need
from infinity_mm.eval.memory_images import MemoryImages
from infinity_mm.record import ImageSlot, Text, Turn

NO_THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
"""Extra body that switches the reasoning of Qwen3-style templates off (vLLM, SGLang)."""
_LIST_TIMEOUT_S = 15.0
_PROBE_TIMEOUT_S = 180.0
"""The first call to a server that is still warming up."""
_PROBE_SIDE_PX = 336
_PROBE = "What color is this image? Answer with one word."
_PROBE_COLOR = "red"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What `GET /models` said."""

    base_url: str
    """The address that answered; `/v1` is added where that was missing."""
    models: tuple[str, ...] | None
    """Names the server knows; None if it has no list."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server and a model that answered a question about a picture."""

    base_url: str
    model: str
    extra_body: dict[str, Any] = field(default_factory=dict)
    """What every call needs besides."""
    notes: tuple[str, ...] = ()
    """What a person should know, in sentences."""


def check_endpoint(endpoint: str, model: str | None, *, api_key_env: str | None = None) -> Served:
    """Raise `UserError` unless the server answers, knows the model, and the model takes an image."""
    if importlib.util.find_spec("aiohttp") is None:
        raise need("aiohttp", extra="synth", purpose="asking a model server")
    return asyncio.run(_check(endpoint, model, api_key_env))


def without_credentials(url: str) -> str:
    """The address as it may be shown: no user, password, query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def choose_model(listing: Listing, model: str | None) -> str:
    """The model's name on the server: the one given, or the only one there is."""
    url, models = without_credentials(listing.base_url), listing.models
    if model is not None and (models is None or model in models):
        return model
    if not models:
        raise explain(
            what="the server does not say which models it has",
            where=f"{url}/models",
            fix="name the model with --model",
        )
    if model is None and len(models) == 1:
        return models[0]
    known = ", ".join(models[:12]) + (f" and {len(models) - 12} more" if len(models) > 12 else "")
    if model is None:
        raise explain(
            what=f"the server has {len(models)} models",
            where=f"{url}/models",
            fix=f"--model, one of: {known}",
        )
    near = _nearest(model, models)
    raise explain(
        what=f"the server knows no model `{model}`",
        where=f"{url}/models",
        fix=(f"did you mean --model {near}? " if near else "") + f"it has: {known}",
    )


def _nearest(model: str, models: tuple[str, ...]) -> str | None:
    """By the whole name, then by what follows the last slash; case does not count."""
    names = {name.casefold(): name for name in models} | {
        name.rpartition("/")[2].casefold(): name for name in models
    }
    wanted = (model.casefold(), model.rpartition("/")[2].casefold())
    near = [n for w in wanted for n in difflib.get_close_matches(w, list(names), n=1, cutoff=0.5)]
    return names[near[0]] if near else None


async def list_models(endpoint: str, *, api_key_env: str | None = None) -> Listing:
    """Ask for the list of models; raises `UserError` for an address where no such server answers."""
    import aiohttp

    if not endpoint.startswith(("http://", "https://")):
        raise explain(
            what=f"`{endpoint}` is not an HTTP address",
            where="--endpoint",
            fix=f"write --endpoint http://{endpoint.rpartition('://')[2]}",
        )
    if "@" in urlsplit(endpoint).netloc or urlsplit(endpoint).query:
        raise explain(
            what="the address holds a user name, a password or a query, and would be written to files",
            where="--endpoint",
            fix=f"write --endpoint {without_credentials(endpoint)}, and give a key by --api-key-env",
        )
    base = endpoint.rstrip("/").removesuffix("/chat/completions")
    key = api_key(api_key_env)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=_LIST_TIMEOUT_S)
    bases = [base] if re.search(r"/v\d+\w*$", base) else [f"{base}/v1", base]
    status = 0
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            for url in bases:
                async with session.get(f"{url}/models") as response:
                    status = response.status
                    body = await response.text(errors="replace")
                models = read_models(body) if status == 200 else None
                if models is not None:
                    return Listing(base_url=url, models=models)
                if status in (401, 403):
                    raise _unauthorised(url, status, api_key_env)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _unreachable(bases[0], error) from error
    if status >= 500:
        raise explain(
            what=f"the server answers with an error, HTTP {status}",
            where=f"{without_credentials(bases[0])}/models",
            fix="look at its log; a server that is still loading its model needs a few minutes",
        )
    return Listing(base_url=bases[0], models=None)


def read_models(body: str) -> tuple[str, ...] | None:
    """The names in an answer to `GET /models`; None if it is no such answer."""
    try:
        data = json.loads(body)
        return tuple(str(model["id"]) for model in data["data"])
    except (ValueError, LookupError, TypeError):
        return None


def _unreachable(url: str, error: BaseException) -> UserError:
    why = "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
    port = urlsplit(url).port or 8000
    return explain(
        what=f"no server answers ({why})",
        where=without_credentials(url),
        fix=f"start one, for example `vllm serve Qwen/Qwen2.5-VL-7B-Instruct --port {port}`, wait until it is "
        f"up, and see that `curl {without_credentials(url)}/models` works from this machine",
    )


def _unauthorised(url: str, status: int, api_key_env: str | None) -> UserError:
    given = f"the key in {api_key_env}" if api_key_env else "a call without a key"
    fix = (
        "check the key"
        if api_key_env
        else "export YOUR_KEY=... and add --api-key-env YOUR_KEY (the variable's name)"
    )
    return explain(what=f"the server refuses {given}, HTTP {status}", where=without_credentials(url), fix=fix)


async def _check(endpoint: str, model: str | None, api_key_env: str | None) -> Served:
    listing = await list_models(endpoint, api_key_env=api_key_env)
    name = choose_model(listing, model)
    notes = []
    if listing.models is None:
        notes.append("The server has no list of models; whether it knows this one shows in the first call.")
    extra: dict[str, Any] = {}
    answer = await _probe(listing.base_url, name, api_key_env, extra)
    if isinstance(answer, Failure) and answer.reason == "empty_reply":
        extra = NO_THINKING
        answer = await _probe(listing.base_url, name, api_key_env, extra)
        if isinstance(answer, Reply):
            notes.append(
                "The model reasons before it answers; its reasoning was switched off (enable_thinking)."
            )
    if isinstance(answer, Failure):
        raise _no_vision(answer, listing.base_url, name, api_key_env)
    if _PROBE_COLOR not in answer.text.casefold():
        said = " ".join(answer.text.split())[:80]
        notes.append(
            f"Shown a red square and asked for its color, the model said “{said}”: does it see images?"
        )
    return Served(base_url=listing.base_url, model=name, extra_body=extra, notes=tuple(notes))


async def _probe(url: str, model: str, api_key_env: str | None, extra: dict[str, Any]) -> Reply | Failure:
    """One small question about one small picture, by the engine that the run will use."""
    images, side = MemoryImages(), _PROBE_SIDE_PX
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (220, 20, 20)).save(buffer, format="PNG")
    image = images.add(buffer.getvalue(), side, side)
    spec = OpenAISpec(
        base_url=url,
        model=model,
        revision="probe",
        api_key_env=api_key_env,
        timeout_s=_PROBE_TIMEOUT_S,
        max_retries=2,
        max_backoff_s=5.0,
        extra_body=extra,
    )
    request = Request(turns=(Turn("user", (ImageSlot(0), Text(_PROBE))),), images=(image,), max_new_tokens=16)
    async with spec.open(images) as engine:
        (answer,) = await engine.generate([request])
    return answer


def _no_vision(failure: Failure, url: str, model: str, api_key_env: str | None) -> UserError:
    status = failure.reason.removeprefix("http_")
    if status in ("401", "403"):
        return _unauthorised(url, int(status), api_key_env)
    what = f"the model `{model}` did not answer a question about a picture ({failure.reason}: {failure.detail[:300]})"
    if failure.reason == "empty_reply":
        fix = "it wrote only reasoning: take the Instruct variant, or a model whose reasoning can be switched off"
    elif status == "404":
        fix = "the server does not know this model or has no /chat/completions: check --model and --endpoint"
    elif failure.retryable:
        fix = "look at the server's log, wait until it has loaded its model, and run the same command again"
    else:
        fix = "serve a vision-language model; with vLLM look at --limit-mm-per-prompt, which must allow one image"
    return explain(what=what, where=without_credentials(url), fix=fix)
