"""What a few images of a run take: measured in a scratch run, or reckoned from their sizes and the prompts.

SynthConfig --N images, one a shard--> run_synthesis in RUN/probe/... --entries--> ImageCost*   (probe: real calls)
SynthConfig --sizes of N images, prompts, limits of replies--> ImageCost*       (arithmetic: at most, no call made)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infinity_mm.engines.spec import EngineConfig
from infinity_mm.errors import explain
from infinity_mm.planning.estimate import ImageCost
from infinity_mm.planning.image_tokens import image_tokens
from infinity_mm.prompts import PromptSet
from infinity_mm.runtime.events import Listener
from infinity_mm.runtime.run import Run
from infinity_mm.sources.config import open_sources
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.storage import manifest
from infinity_mm.storage.manifest import Manifest
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import config_digest, run_synthesis
from infinity_mm.synth.stages import build_stages
from infinity_mm.synth.styles import styles_used
from infinity_mm.taxonomy.tree import Tree
from infinity_mm.vision.images import BadImage, image_size

Sizes = tuple[tuple[int, int], ...]
"""(width, height) of the images of one sample."""
BYTES_PER_TOKEN = 4.0
"""Of English text; for the arithmetic only."""
_EXCHANGE_BYTES = 400
"""Assumed for the question and the answer that a prompt holds besides its template."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The images that were looked at."""

    images: tuple[ImageCost, ...]
    num_images: float
    """Images of the whole run that this sample speaks for."""
    is_measured: bool
    """Whether models were asked."""
    notes: tuple[str, ...]
    """What is assumed, and where the figures come from; for people."""
    wall_s: float | None = None
    """A probe's time for its journeys, in the call that ended them."""


def probe(config: SynthConfig, num_images: int, on_event: Listener | None = None) -> Sample:
    """Run the journeys of a fixed random part of the images, journal and all, in a folder of its own in the run.

    The same command again asks nothing twice.
    """
    if config.journal == "simulate":
        raise explain(
            what="a probe measures, and with journal=simulate replies are made up",
            where="infinity-mm plan --probe",
            fix="leave out journal=simulate, or --probe",
        )
    total = len(config.read.items())
    small = replace(
        config,
        run_dir=Run(config.run_dir).path("probe", f"{config_digest(config)}-{num_images}"),
        read=replace(config.read, sample=num_images),
        images_per_shard=1,
    )
    summary = run_synthesis(small, on_event)
    run = Run(small.run_dir)
    committed = run.manifest("journeys")
    assert committed is not None, "run_synthesis commits it"
    images = [image_cost(config, *found) for found in _measured(run, committed)]
    looked_at = summary.passes["read"]["in"]
    if not images:
        raise explain(
            what=f"none of {looked_at} images came as far as its first question",
            where=small.run_dir,
            fix=f"look at what was dropped there (infinity-mm report {small.run_dir}), or use a larger --probe",
        )
    notes = [f"measured on {len(images)} of {total:,} listed files, in {small.run_dir}"]
    if not any(sum(image.prompt_tokens.values()) for image in images):
        notes.append("the engine tells no token counts, so there are none here")
    return Sample(
        images=tuple(images),
        num_images=total * len(images) / looked_at,
        is_measured=True,
        notes=(*notes, cache_note(config)),
        wall_s=committed.seconds,
    )


def _measured(run: Run, committed: Manifest) -> list[tuple[Mapping[str, float], Sizes]]:
    """Metrics and size of every image that began a journey; each is a shard of its own."""
    planned = list(run.samples("plan"))
    entries = list(manifest.entries(run.run_dir, committed))
    sizes = [tuple((image.width, image.height) for image in sample.images) for sample in planned]
    read = [json.loads(manifest.read_object(run.run_dir, entry.objects["metrics"])) for entry in entries]
    return list(zip(read, sizes, strict=True))


def image_cost(config: SynthConfig, metrics: Mapping[str, float], sizes: Sizes) -> ImageCost:
    """From a shard of one image; what the server does not say of its prefix cache is reckoned."""

    def by_stage(name: str) -> dict[str, float]:
        return {key.partition(".")[2]: n for key, n in metrics.items() if key.startswith(f"{name}.")}

    calls, cached = by_stage("calls"), by_stage("cached_tokens")
    return ImageCost(
        calls=calls,
        prompt_tokens=by_stage("prompt_tokens"),
        completion_tokens=by_stage("completion_tokens"),
        cached_tokens=cached if any(cached.values()) else shared_prefix(config, calls, sizes),
        pairs_kept=metrics.get("pairs", 0.0),
    )


def shared_prefix(config: SynthConfig, calls: Mapping[str, float], sizes: Sizes) -> dict[str, float]:
    """Stage -> tokens of the image that an earlier call about it has brought into the model's cache."""
    roles = roles_of(config)
    cached: dict[str, float] = {}
    seen: set[str] = set()
    for stage, number in calls.items():
        role = roles.get(stage, "teacher")
        if role == "scorer":  # prompt log-probabilities are computed without the cache
            continue
        again = number if role in seen else number - 1
        seen.add(role)
        cached[stage] = max(0.0, again) * tokens_of(config, role, sizes)[0]
    return cached


def engines_of(config: SynthConfig) -> dict[str, EngineConfig]:
    """The models by role; a judge that is not configured is the teacher."""
    engines = config.engines
    found = {"teacher": engines.teacher, "judge": engines.judge, "scorer": engines.scorer}
    return {role: engine for role, engine in found.items() if engine is not None}


def roles_of(config: SynthConfig) -> dict[str, str]:
    """Stage -> the one model it asks; a stage that asks several, or a judge that is none, is the teacher's."""
    engines = engines_of(config)
    stages = build_stages(config, Tree.load(config.plan.tree), PromptSet.load(config.prompts))
    only = {stage.name: next(iter(stage.roles)) for stage in stages if len(stage.roles) == 1}
    return {stage: role if role in engines else "teacher" for stage, role in only.items()}


def tokens_of(config: SynthConfig, role: str, sizes: Sizes) -> tuple[int, str]:
    """Of the images of one sample, and by which rule."""
    engine = engines_of(config)[role]
    each = [
        image_tokens(engine.model or "", width, height, longest_px=engine.image_max_px)
        for width, height in sizes
    ]
    return sum(tokens for tokens, _ in each), each[0][1]


def cache_note(config: SynthConfig) -> str:
    """What is assumed about prefixes."""
    rule = tokens_of(config, "teacher", ((1024, 768),))[1]
    return f"an image is read once per model, as a prefix cache does; its tokens where no server says: {rule}"


def reckon(config: SynthConfig, num_images: int, *, kept_share: float) -> Sample:
    """No call is made: every question is taken to survive and every reply to be as long as it may be.

    So calls and tokens are the most there can be; `kept_share` of all pairs are taken to be kept.
    """
    items = config.read.items()
    some = replace(config.read, sample=num_images).items()
    sources = open_sources(config.read.sources)
    sizes: list[Sizes] = []
    for item in some:
        if item.problem is None:
            try:
                pictures = sources[item.source].read(item).pictures
                sizes.append(
                    tuple(image_size(one.data, max_pixels=config.read.max_pixels) for one in pictures)
                )
            except (BadImage, BadRow):
                continue
    if not sizes:
        raise explain(
            what=f"none of {len(some)} files is a readable picture",
            where="read.sources",
            fix="correct the path",
        )
    images = [_reckoned(config, one, kept_share) for one in sizes]
    return Sample(
        images=tuple(images),
        num_images=len(items) * len(sizes) / len(some),
        is_measured=False,
        notes=(
            f"no model was asked: sizes of {len(sizes)} of {len(items):,} listed files, every question survives, "
            f"every reply is as long as it may be, {BYTES_PER_TOKEN:g} bytes a token; {kept_share:.0%} of pairs kept",
            "with --probe N the figures are measured on N images",
            cache_note(config),
        ),
    )


def _reckoned(config: SynthConfig, sizes: Sizes, kept_share: float) -> ImageCost:
    prompts = PromptSet.load(config.prompts)
    tree = Tree.load(config.plan.tree)
    stages = build_stages(config, tree, prompts)
    roles = roles_of(config)
    samples = float(config.plan.questions_per_image)
    calls: dict[str, float] = {}
    read: dict[str, float] = {}
    written: dict[str, float] = {}
    for stage in stages:
        if "style" in stage.writes:
            samples *= len(styles_used(config.styles, tree.styles))
        if (
            not stage.roles or stage.name == "distinct"
        ):  # it asks again where questions repeat: here none does
            continue
        number = samples * len(stage.roles)
        image, _ = tokens_of(config, roles.get(stage.name, "teacher"), sizes)
        own = [
            prompts.text(name)
            for name in prompts.texts
            if name in stage.prompts or name.startswith(stage.name)
        ]
        text = max((len(prompt.encode()) for prompt in own), default=0) + _EXCHANGE_BYTES
        calls[stage.name] = number
        read[stage.name] = number * (image + (text + len(prompts.system.encode())) / BYTES_PER_TOKEN)
        written[stage.name] = samples * reply_tokens(getattr(config, stage.name, None))
        if len(stage.roles) > 1:  # what it made is judged as well
            written[stage.name] += samples * reply_tokens(config.judge)
    return ImageCost(
        calls=calls,
        prompt_tokens=read,
        completion_tokens=written,
        cached_tokens=shared_prefix(config, calls, sizes),
        pairs_kept=kept_share * samples,
    )


def reply_tokens(section: Any) -> float:
    """Longest reply of a stage by its section of the configuration; the mean over styles where there are several."""
    most: int | Mapping[str, int] = getattr(section, "max_new_tokens", 64)
    lengths: Sequence[int] = list(most.values()) if isinstance(most, Mapping) else [most]
    return sum(lengths) / len(lengths)
