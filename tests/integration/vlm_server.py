"""A server on loopback that speaks like a real VLM behind vLLM: prose, log-probabilities, and its bad moments.

    with VlmServer() as server: server.url        (a thread of its own)
    python tests/integration/vlm_server.py 8123   (for a browser or another process)

It looks at the picture it is sent as far as a few lines can (size, brightness, commonest color), so that replies
differ between pictures. Among the first calls there is one refusal, one reply with `<think>`, one that is cut off,
one 429 with Retry-After and one 500.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import re
import sys
import threading
import time
from collections import Counter
from typing import Any, Self

import numpy as np
from aiohttp import web
from PIL import Image

COLORS = {
    "red": (200, 40, 40),
    "green": (50, 140, 60),
    "blue": (50, 90, 190),
    "yellow": (220, 200, 60),
    "brown": (130, 90, 55),
    "orange": (230, 130, 40),
    "purple": (120, 60, 150),
    "pink": (230, 150, 180),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "white": (240, 240, 240),
}
QUESTIONS = {
    "caption": "Describe what this picture shows, from the foreground to the background.",
    "setting": "In what kind of place does this picture seem to have been taken?",
    "object": "What is the largest thing in the middle of the picture?",
    "looks": "Which color covers most of the picture?",
    "count": "How many clearly separate things stand in the foreground?",
    "position": "What is to the left of the brightest part of the picture?",
    "difference": "Is the upper half of the picture brighter or darker than the lower half?",
    "why": "Does the light suggest that the picture was taken by day, and what shows it?",
    "purpose": "For what purpose was this picture probably made?",
}


class VlmServer:
    """Serves two models, `test/vlm-7b` which sees and `test/llm-7b` which does not."""

    def __init__(
        self, *, key: str | None = None, delay_s: float = 0.0, port: int = 0, faults: bool = True
    ) -> None:
        self._key, self._delay_s, self._port, self._is_faulty = key, delay_s, port, faults
        self.calls: Counter[str] = Counter()
        """Kind of call (probe, ask, check, answer, judge, rewrite) -> number, the failed ones included."""
        self.faults: list[str] = []
        """Which bad moments there were."""
        self.keys: list[str | None] = []
        """Authorization headers, in order."""
        self.url = ""
        self._stop = asyncio.Event()
        self.is_down = False
        """True: every call gets a 503."""
        self.is_holding = False
        """True: calls about the first picture that comes wait until this is False again."""
        self._held = ""

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _serve(self, ready: threading.Event) -> None:
        async def run() -> None:
            app = web.Application(client_max_size=1 << 26)
            app.router.add_get("/v1/models", self._models)
            app.router.add_post("/v1/chat/completions", self._chat)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

        self._loop.run_until_complete(run())
        self._loop.close()

    async def _models(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        created = int(time.time())
        models = [
            {"id": name, "object": "model", "created": created, "owned_by": "vllm", "max_model_len": 16384}
            for name in ("test/vlm-7b", "test/llm-7b")
        ]
        return web.json_response({"object": "list", "data": models})

    def _refused(self, request: web.Request) -> web.Response | None:
        self.keys.append(request.headers.get("Authorization"))
        if self._key is not None and self.keys[-1] != f"Bearer {self._key}":
            return web.json_response({"error": {"message": f"bad key {self.keys[-1]}"}}, status=401)
        return None

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        if refused := self._refused(request):
            return refused
        if self.is_down:
            return web.json_response({"error": {"message": "shutting down"}}, status=503)
        content = body["messages"][-1]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        prompt = "".join(part["text"] for part in parts if part["type"] == "text")
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        if images and body["model"] == "test/llm-7b":
            message = "test/llm-7b is not a multimodal model"
            return web.json_response(
                {"object": "error", "message": message, "type": "BadRequestError"}, status=400
            )
        look = Look(images[0]) if images else None
        kind = kind_of(prompt)
        self.calls[kind] += 1  # on arrival: a caller that went away while it waited is counted at once
        fault = self._fault(kind)
        await asyncio.sleep(self._delay_s)
        if self.is_holding and kind != "probe":
            self._held = self._held or images[0]
            while self.is_holding and images[0] == self._held:
                await asyncio.sleep(0.02)
        if fault == "429":
            return web.json_response(
                {"error": {"message": "rate limit"}}, status=429, headers={"Retry-After": "0"}
            )
        if fault == "500":
            return web.json_response({"error": {"message": "CUDA error"}}, status=500)
        text = reply(kind, prompt, look)
        reason = "stop"
        if fault == "refusal":
            text = "I'm sorry, but I can't help with identifying people in images."
        elif fault == "think":
            text = f"<think>The user wants an answer. Let me look again at the picture.</think>\n\n{text}"
        elif fault == "cut_off":
            text, reason = text[: max(len(text) // 2, 1)], "length"
        return web.json_response(completion(body, text, reason))

    def _fault(self, kind: str) -> str | None:
        """Each once, at a fixed call of its kind."""
        plan = {
            ("ask", 2): "429",
            ("ask", 4): "500",
            ("answer", 3): "refusal",
            ("answer", 5): "think",
            ("answer", 7): "cut_off",
        }
        fault = plan.get((kind, self.calls[kind])) if self._is_faulty else None
        if fault is not None:
            self.faults.append(fault)
        return fault


class Look:
    """What can be said of a picture in a few lines."""

    def __init__(self, uri: str) -> None:
        head, _, data = uri.partition(",")
        assert re.fullmatch(r"data:image/(png|jpeg|webp);base64", head), head
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            self.width, self.height = image.size
            small = np.asarray(image.convert("RGB").resize((16, 16))).reshape(256, 3)
        names = Counter(nearest_color(tuple(int(value) for value in pixel)) for pixel in small)
        self.colors = [name for name, _ in names.most_common(3)]
        rows = small.mean(axis=1)
        self.upper, self.lower = float(rows[:128].mean()), float(rows[128:].mean())

    @property
    def color(self) -> str:
        return self.colors[0]

    @property
    def brighter(self) -> str:
        return "brighter" if self.upper > self.lower else "darker"


def nearest_color(pixel: tuple[int, ...]) -> str:
    return min(COLORS, key=lambda name: math.dist(pixel, COLORS[name]))


def kind_of(prompt: str) -> str:
    """Which of the default prompt set's prompts it is."""
    for start, kind in (
        ("What color is this image?", "probe"),
        ("Write one question", "ask"),
        ("Somebody was shown", "check"),
        ("Grade an answer", "judge"),
        ("The answer below", "rewrite"),
    ):
        if prompt.startswith(start):
            return kind
    return "answer"


def reply(kind: str, prompt: str, look: Look | None) -> str:
    assert look is not None, "every call of synthesis shows its image"
    if kind == "probe":
        return look.color.capitalize() + "."
    if kind == "ask":
        found = re.search(r"Kind of question: .*> (\w+)", prompt)
        type_ = found.group(1) if found else ""
        return QUESTIONS.get(type_, "NONE")
    if kind == "check":
        return "No" if "left of the brightest" in prompt else "Yes"
    if kind == "judge":
        return grade(prompt, look)
    if kind == "rewrite":
        answer = prompt.partition("Answer:\n")[2].partition("\n\nCorrect it")[0]
        return answer.replace("purple and turquoise", f"{look.color}").replace("a dozen", "a few")
    return answer_to(prompt, look)


def grade(prompt: str, look: Look) -> str:
    if "purple and turquoise" in prompt or "a dozen" in prompt:
        return "6"
    if "For what purpose" in prompt:
        return "3"
    return "10" if look.color in prompt else "9"


def answer_to(prompt: str, look: Look) -> str:
    """Prose in the style that the prompt asks for; some of it wrong, so that there is something to repair."""
    rest = look.colors[1] if len(look.colors) > 1 else "gray"
    if "single word" in prompt:
        if "Which color" in prompt:
            return look.color.capitalize()
        return "A few" if "How many" in prompt else f"A {look.color} shape"
    if "Describe" in prompt:
        return (
            f"The picture is {look.width} pixels wide and {look.height} high. Its main part is purple and turquoise, "
            f"with some {rest} around it. The upper half is {look.brighter} than the lower half, and towards the edges "
            "the details get fewer.\nAnswer: A picture with one main subject before a plainer background."
        )
    if "brighter or darker" in prompt:
        return f"Most of the light falls on one half.\nAnswer: The upper half is {look.brighter}."
    if "How many" in prompt:
        return "Next to the main subject there are a dozen smaller things.\nAnswer: a dozen"
    if "For what purpose" in prompt:
        return "It was made in 1987 for a well-known magazine.\nAnswer: For a magazine."
    return f"What stands out is the {look.color} area with some {rest}.\nAnswer: The {look.color} one."


def completion(body: dict[str, Any], text: str, reason: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "reasoning_content": None},
        "finish_reason": reason,
    }
    if body.get("logprobs"):
        words = [text, *(["Yes", "No", "9", "8", "10", "7"])][: max(1, int(body.get("top_logprobs") or 1))]
        top = [
            {"token": w, "logprob": -0.1 - 2.5 * i, "bytes": list(w.encode())} for i, w in enumerate(words)
        ]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 900, "completion_tokens": len(text.split()), "total_tokens": 900},
    }


if __name__ == "__main__":
    with VlmServer(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000, delay_s=0.2) as served:
        print(served.url, flush=True)
        threading.Event().wait()
