"""A trial from beginning to end: check the teacher, choose pictures, run the passes, keep a page of what is there.

Settings --check_endpoint, select--> SynthConfig --run_synthesis--> units, one by one --> index.html, written anew
                                                      \\--Ctrl-C, server gone--> the same page of what is there
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from infinity_mm.errors import UserError, explain
from infinity_mm.runtime.events import Event, Listener, UnitDone
from infinity_mm.runtime.run import Run
from infinity_mm.sources.file_list import write_list
from infinity_mm.storage import files
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis
from infinity_mm.synth.summary import Summary
from infinity_mm.trial.collect import Funnel, collect, funnel
from infinity_mm.trial.commands import next_commands
from infinity_mm.trial.endpoint import Served, check_endpoint, without_credentials
from infinity_mm.trial.inputs import Selection, expand, select
from infinity_mm.trial.page import PageFacts, Shown, render
from infinity_mm.trial.settings import NO_TAGGER, Settings, settings_config

PAGE_FILE = "index.html"
RESULT_FILE = "result.json"
_SECONDS_BETWEEN_PAGES = 5.0
NANO_NOTE = (
    "nano-teacher is a model of a few million parameters that was trained on drawn shapes, charts, tables and signs "
    "only. On photographs its questions and answers mean nothing: this trial shows what the tool does, not what it is "
    "worth. Give --endpoint and --model for a teacher that knows your pictures."
)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a trial came to, complete or not."""

    page: str
    """Path of the page."""
    run_dir: str
    model: str
    state: str
    """done, interrupted, or failed."""
    files_given: int
    """The sum of the next three."""
    pictures_read: int
    """Readable files that were looked at; the same picture twice counts twice."""
    files_unusable: dict[str, int]
    """Reason -> files."""
    files_not_needed: int
    """Not opened, because there were enough pictures."""
    counts: dict[str, Any]
    """The funnel; see `collect.Funnel`."""
    notes: tuple[str, ...]
    next_commands: tuple[str, ...]
    wall_s: float


def run_trial(settings: Settings, *, say: Say, on_event: Listener | None = None) -> Result:
    """Run or resume a trial.

    `say` is told, in sentences, what a person waits for. Raises `UserError` before anything was worked; what goes
    wrong later, Ctrl-C included, ends in a page of what is there and a `Result` that says so.
    """
    start = time.monotonic()
    _check(settings)
    given = expand(settings.images)
    served = None
    if settings.endpoint is not None:
        say(f"asking {without_credentials(settings.endpoint)} for its models and about one small picture")
        served = check_endpoint(settings.endpoint, settings.model, api_key_env=settings.api_key_env)
    model = served.model if served is not None else settings.model_name
    folder = settings.folder(model)
    run = Run(str(folder / "run"))
    config = settings_config(settings, served, folder=folder)
    selection = select(given, num_pictures=settings.num_pictures, config=config.read, run=run)
    _need_pictures(selection, settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_list(folder / "inputs.jsonl", selection.looked_at)
    say(_chosen(selection))
    notes = ([NANO_NOTE] if settings.is_nano else []) + list(served.notes if served else ())
    for note in notes:
        say(note)
    trial = _Trial(settings, served, config, run, folder, selection, tuple(notes), start)
    page = trial.write_page("failed", None, "The trial has just begun.")
    say(f"working; the page grows as pictures are done: {page}")
    return trial.work(on_event)


def _check(settings: Settings) -> None:
    if settings.endpoint is None and settings.api_key_env is not None:
        raise explain(
            what="a key without a server to send it to",
            where="--api-key-env",
            fix="add --endpoint, or leave --api-key-env out",
        )
    if settings.is_nano and settings.tagger is not None:
        raise explain(
            what="nano-teacher goes with the tagger that was made for it",
            where="--tagger",
            fix="leave --tagger out, or give --endpoint and --model",
        )


def _need_pictures(selection: Selection, settings: Settings) -> None:
    if selection.pictures:
        return
    reasons = defaultdict(int)
    for one in selection.unusable:
        reasons[one.problem] += 1
    found = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
    raise explain(
        what=f"none of {selection.num_given} files is a readable picture ({found or 'there are no files'})",
        where=" ".join(settings.images),
        fix="give JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF files of at least 32 pixels a side",
    )


def _chosen(selection: Selection) -> str:
    different = len(set(selection.pictures.values()))
    parts = [f"{different} pictures of {selection.num_given} files"]
    if len(selection.pictures) > different:
        parts.append(f"{len(selection.pictures) - different} copies of them")
    if selection.unusable:
        parts.append(f"{len(selection.unusable)} unusable (listed on the page)")
    if selection.not_needed:
        parts.append(f"{selection.not_needed} not needed (--n)")
    return ", ".join(parts)


@final
class _Trial:
    """One trial under way."""

    def __init__(
        self,
        settings: Settings,
        served: Served | None,
        config: SynthConfig,
        run: Run,
        folder: Path,
        selection: Selection,
        notes: tuple[str, ...],
        start: float,
    ) -> None:
        self._settings, self._served, self._config = settings, served, config
        self._run, self._folder, self._selection = run, folder, selection
        self._notes, self._start = notes, start
        self._last_page = 0.0

    def work(self, on_event: Listener | None) -> Result:
        """Run the passes; whatever ends them, the page says what is there."""

        def listen(event: Event) -> None:
            if on_event is not None:
                on_event(event)
            self._on_event(event)

        summary, state, note = None, "done", ""
        try:
            summary = run_synthesis(self._config, listen)
        except KeyboardInterrupt:
            state = "interrupted"
            note = "Stopped by Ctrl-C. The same command goes on; what was answered is not asked again."
        except UserError as error:
            state = "failed"
            note = f"Stopped: {error}\nThe same command goes on; what was answered is not asked again."
        self.write_page(state, summary, note)
        return self._result(state, note)

    def _on_event(self, event: Event) -> None:
        is_late = time.monotonic() - self._last_page > _SECONDS_BETWEEN_PAGES
        if isinstance(event, UnitDone) and event.pass_name == "journeys" and is_late:
            self.write_page("running", None, "Not finished: load the page again for more.")

    def write_page(self, state: str, summary: Summary | None, note: str) -> str:
        """Write the page as things stand; returns its path."""
        pictures = collect(self._run)
        paths: dict[str, list[str]] = defaultdict(list)
        for path, sha256 in self._selection.pictures.items():
            paths[sha256].append(path)
        shown = [
            Shown(
                picture=picture, data=_bytes(paths[picture.image.sha256]), paths=paths[picture.image.sha256]
            )
            for picture in pictures
            if picture.image.sha256 in paths
        ]
        shown.sort(key=lambda one: list(one.paths))
        counts = funnel([one.picture for one in shown])
        facts = PageFacts(
            title=f"{len(set(self._selection.pictures.values()))} of your pictures through {self._model}",
            notes=[*([note] if note else []), *self._notes],
            how=self._how(summary),
            keep_at=self._config.policy.keep_at,
            rewrite_at=self._config.policy.rewrite_at,
            next_commands=next_commands(self._settings, self._served),
        )
        page = self._folder / PAGE_FILE
        html = render(facts, shown, self._selection.unusable, counts)
        files.write(str(page), html.encode("utf-8", "replace"))
        self._last_page, self._counts = time.monotonic(), counts
        return str(page)

    @property
    def _model(self) -> str:
        return self._served.model if self._served is not None else self._settings.model_name

    def _how(self, summary: Summary | None) -> Mapping[str, str]:
        tagger = self._config.tagger.model
        how = {
            "teacher": self._model,
            "server": without_credentials(self._served.base_url) if self._served else "in this process",
            "judge": "the teacher itself",
            "prompts": self._config.prompts,
            "kinds of question": f"{self._config.plan.questions_per_image} a picture, tree {self._config.plan.tree}",
            "image tags": "none (--tagger for kinds of question that fit the picture)"
            if tagger == NO_TAGGER
            else tagger,
            "files": _chosen(self._selection),
        }
        if summary is not None:
            calls = sum(summary.calls.values())
            how["calls"] = (
                f"{calls} ({summary.calls_from_journal} from the journal, {summary.calls_failed} failed)"
            )
            how["tokens"] = f"{summary.prompt_tokens} read, {summary.completion_tokens} written"
            how["data set"] = (
                f"{summary.conversations} conversations, {' '.join(summary.published) or 'no file'}"
            )
        return how

    def _result(self, state: str, note: str) -> Result:
        counts: Funnel = self._counts
        reasons: dict[str, int] = defaultdict(int)
        for one in self._selection.unusable:
            reasons[one.problem or ""] += 1
        result = Result(
            page=str(self._folder / PAGE_FILE),
            run_dir=self._run.run_dir,
            model=self._model,
            state=state,
            files_given=self._selection.num_given,
            pictures_read=len(self._selection.pictures),
            files_unusable=dict(sorted(reasons.items())),
            files_not_needed=self._selection.not_needed,
            counts=dict(vars(counts)),
            notes=(*([note] if note else []), *self._notes),
            next_commands=tuple(next_commands(self._settings, self._served)),
            wall_s=round(time.monotonic() - self._start, 1),
        )
        text = json.dumps(vars(result), indent=2, ensure_ascii=False) + "\n"
        files.write(str(self._folder / RESULT_FILE), text.encode("utf-8", "replace"))
        return result


def _bytes(paths: list[str]) -> bytes | None:
    for path in paths:
        try:
            return Path(os.fspath(path)).read_bytes()
        except OSError:
            continue
    return None
