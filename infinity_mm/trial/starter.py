"""`infinity-mm init`: a first configuration for pipelines/synth.py in which every key is explained.

images, teacher --starter_text--> YAML with comments --build--> the same SynthConfig that a run loads, or an error
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infinity_mm.config import load_config
from infinity_mm.errors import explain
from infinity_mm.synth.config import SynthConfig
from infinity_mm.trial.endpoint import without_credentials
from infinity_mm.trial.settings import NANO_TEACHER, NO_TAGGER

DEFAULT_ENDPOINT = "http://localhost:8000/v1"
DEFAULT_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
DEFAULT_TAGGER = "ViT-B-32/laion2b_s34b_b79k"


@dataclass(frozen=True, kw_only=True)
class Starter:
    """What `init` was told."""

    path: Path
    images: str | None = None
    """Folder or URL; None: drawn pictures, with the models that ship with the package."""
    endpoint: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    tagger: str | None = None
    """open_clip name or `none`; None: the one that suits the images."""

    @property
    def is_drawn(self) -> bool:
        """Whether the run needs nothing but the package."""
        return self.images is None


def write_starter(starter: Starter, *, force: bool) -> SynthConfig:
    """Write the file and return what it loads as; an existing file is left alone unless `force`."""
    _check(starter)
    if starter.path.suffix not in (".yaml", ".yml"):
        raise explain(
            what=f"{starter.path} is no YAML file",
            where="infinity-mm init",
            fix=f"call it {starter.path.with_suffix('.yaml')}",
        )
    if starter.path.exists() and not force:
        raise explain(
            what=f"{starter.path} is there already",
            where="infinity-mm init",
            fix="give another name, or --force to overwrite it",
        )
    starter.path.parent.mkdir(parents=True, exist_ok=True)
    partial = starter.path.with_name(starter.path.name + ".partial.yaml")
    partial.write_text(starter_text(starter), encoding="utf-8")
    try:
        config = load_config(SynthConfig, partial)
        os.replace(partial, starter.path)
    finally:
        partial.unlink(missing_ok=True)
    return config


def _check(starter: Starter) -> None:
    if starter.is_drawn and (starter.endpoint or starter.model or starter.tagger):
        raise explain(
            what="a teacher without pictures to show it",
            where="infinity-mm init",
            fix="add --images FOLDER, or leave --endpoint, --model and --tagger out for drawn pictures",
        )
    if starter.endpoint is not None and starter.model is None:
        raise explain(
            what="a server without a model's name",
            where="--endpoint",
            fix=f"add --model NAME; `curl {without_credentials(starter.endpoint).rstrip('/')}/models` lists them",
        )
    if starter.endpoint is not None and "@" in urlsplit(starter.endpoint).netloc:
        raise explain(
            what="the address holds a user name or a password, and would be written to a file",
            where="--endpoint",
            fix=f"write --endpoint {without_credentials(starter.endpoint)}, and give a key by --api-key-env",
        )
    if starter.images is not None and "://" not in starter.images and not os.path.isdir(starter.images):
        raise explain(
            what=f"there is no folder {starter.images}",
            where="--images",
            fix="give an existing folder, or a URL such as s3://bucket/photos",
        )


def starter_text(starter: Starter) -> str:
    """The YAML with its comments."""
    name = starter.path.stem
    run_dir = str(starter.path.absolute().parent / "runs" / name)
    sections = [
        _HEAD.format(path=starter.path, name=_quoted(name), run_dir=_quoted(run_dir)),
        _read(starter),
        _tagger(starter),
        _plan(starter),
        _engines(starter),
        _NANO_STAGES if starter.is_drawn else _STAGES,
        _TAIL,
    ]
    return "\n".join(_aligned(line) for line in "\n".join(sections).split("\n"))


def _aligned(line: str) -> str:
    """Comments in one column; the last ` # ` is the comment, since a path before it may hold one too."""
    found = re.fullmatch(r"(\s*[^\s#].*\S)\s{2,}# (.*)", line)
    return line if found is None else f"{found[1]:<30} # {found[2]}"


def _quoted(value: str) -> str:
    """A YAML string; JSON strings are YAML strings."""
    return json.dumps(value, ensure_ascii=False)


def _read(starter: Starter) -> str:
    if starter.images is None:
        source = (
            "    - kind: windtunnel         # drawn pictures whose truth is known; kind: folder reads your own\n"
            "      num_images: 8            # how many are drawn\n"
            "      world_seed: 1            # which world: another number gives other pictures\n"
            "      split: train             # train or held_out; keep held_out for evaluation"
        )
    else:
        path = starter.images if "://" in starter.images else os.path.abspath(starter.images)
        source = (
            "    - kind: folder             # walked with all its subfolders\n"
            f"      path: {_quoted(path)}   # absolute, or a URL such as s3://bucket/photos\n"
            "      licence: unknown         # goes into every published row; say what it is, as in CC-BY-4.0"
        )
    return _READ.format(source=source)


def _tagger(starter: Starter) -> str:
    if starter.is_drawn:
        lines = [
            "  model: nano-clip             # what recognises things in the pictures; this one knows drawn ones only",
            "  vocabulary: windtunnel       # the words it looks for",
            '  prompt: "{tag}"              # what a word is wrapped in',
            "  min_score: 0.5               # words that score less are left out",
        ]
    elif starter.tagger == NO_TAGGER:
        lines = [
            "  model: none                  # nothing is recognised: every picture gets kinds of question that fit any",
            "  vocabulary: general          # the words it would look for",
        ]
    else:
        lines = [
            f"  model: {_quoted(starter.tagger or DEFAULT_TAGGER)}   # open_clip name/weights, downloaded once",
            "                               # (none: no tags and no download, with plan.tree: any_picture)",
            "  vocabulary: general          # the words it looks for, or a text file with one word per line",
            "  prompt: a photo of {tag}     # what a word is wrapped in; suits models trained on captions of photos",
            "  min_score: 0.2               # words that score less are left out; lower gives more and falser tags",
        ]
    return "\n".join(
        ["tagger:                        # tags decide which kinds of question a picture gets", *lines, ""]
    )


def _plan(starter: Starter) -> str:
    if starter.is_drawn:
        tree, seeds, fit = "windtunnel", "windtunnel", "0.5"
    else:
        tree, seeds, fit = ("any_picture" if starter.tagger == NO_TAGGER else "default"), "tree", "0.3"
    return _PLAN.format(tree=tree, seeds=seeds, fit=fit, questions=2 if starter.is_drawn else 4)


def _engines(starter: Starter) -> str:
    if starter.is_drawn or (starter.model is not None and starter.endpoint is None):
        teacher = [
            "    kind: transformers         # the model is loaded in this process; openai asks a server",
            f"    model: {_quoted(starter.model or NANO_TEACHER)}   # a shipped name, a folder, or a Hub id",
        ]
    else:
        teacher = [
            "    kind: openai               # any OpenAI-compatible server: vLLM, SGLang, llama.cpp, hosted ones",
            f"    base_url: {_quoted(starter.endpoint or DEFAULT_ENDPOINT)}   # up to and including /v1",
            f"    model: {_quoted(starter.model or DEFAULT_MODEL)}   # the name that the server knows",
            "    revision: null             # which weights: a commit or a date; null is recorded as unpinned",
            "    max_in_flight: 64          # most calls at once; raise it until the server is busy",
            "    image_max_px: 1536         # larger pictures are sent smaller; null sends them as they are",
        ]
        if starter.api_key_env is not None:
            teacher.append(
                f"    api_key_env: {starter.api_key_env}   # NAME of the variable that holds the key, never the key"
            )
    return _ENGINES.format(teacher="\n".join(teacher), prompts="nano" if starter.is_drawn else "default")


_HEAD = """\
# A synthesis run: pictures in, question-and-answer conversations out. Run it, and resume it, with
#   python pipelines/synth.py --config {path}
# Any key can be changed for one run on the command line: key.sub=value
# Keys that are not here have defaults; a misspelt key is an error that names the nearest one.

name: {name}                   # what the run is called in its summary and report
run_dir: {run_dir}             # everything is written below it; the same folder again resumes. Absolute path or URL
seed: 0                        # another number gives other plans and other draws
"""
_READ = """\
read:                          # which pictures are taken in; what is left out is listed with its reason
  sources:                     # one or more; each with its own kind
{source}
  images_per_unit: 256         # files in one piece of work
  min_side_px: 32              # smaller pictures are left out: there is nothing to ask about
  max_aspect: 16               # and so are those longer than this times their width
"""
_PLAN = """\
plan:                          # which kinds of question each picture gets
  tree: {tree}                 # the kinds: windtunnel, default, any_picture, or your own YAML file (docs/taxonomy.md)
  seeds: {seeds}               # what ties tags to kinds: tree takes the typical tags of each kind
  min_fit: {fit}               # 0 to 1: lower gives more variety, higher a better fit
  questions_per_image: {questions}   # most questions for one picture
"""
_ENGINES = """\
engines:                       # the models
  teacher:                     # asks, checks, answers and repairs
{teacher}
  judge: null                  # scores the answers; null: the teacher. A model of another family is a fairer judge:
                               #   judge: {{kind: openai, base_url: ..., model: ..., revision: ...}}

prompts: {prompts}             # default for real models, nano for nano-teacher, or a folder of your own
"""
_STAGES = """\
ask:                           # writing a question of the planned kind
  temperature: 0.7             # above 0, or pictures of a kind all get the same question
  max_new_tokens: 96           # room for the question; longer ones are dropped
check:                         # asking again: can it be answered from the picture?
  min_probability: null        # null goes by the word yes or no; a number needs an engine with log-probabilities
styles:                        # how questions are answered, where it suits the kind
  names: [short, brief, detailed, full]   # a word or phrase, a reason first, an explanation first, a text or list
answer:                        # answering
  temperature: 0.0             # 0 takes the likeliest words
  max_new_tokens: {short: 64, brief: 256, detailed: 768, full: 768}   # room by style; nothing is ever shortened
policy:                        # what happens to an answer with its score, 1 to 10
  keep_at: 8                   # kept from here on
  rewrite_at: 4                # repaired once from here to keep_at; dropped below. null repairs nothing
rewrite:                       # repairing
  max_new_tokens: 768          # room for the whole new answer
  min_gain: 1.0                # points by which the new score must exceed the old one
"""
_NANO_STAGES = """\
ask:                           # writing a question of the planned kind
  temperature: 0.7             # above 0, or pictures of a kind all get the same question
  max_new_tokens: 48           # room for the question; longer ones are dropped
  min_chars: 4                 # shorter questions are dropped
  drop_copied_examples: false  # in a world of so few words a question may well be one of its examples
  describe_type: false         # the nano models know kinds of question by name
check:                         # asking again: can it be answered from the picture?
  min_probability: 0.5         # least probability of yes; null goes by the word
styles:                        # how questions are answered
  names: [short, brief, detailed]   # a word or phrase, a reason first, a full explanation first
answer:                        # answering
  temperature: 0.0             # 0 takes the likeliest words
  max_new_tokens: {short: 24, brief: 64, detailed: 160}   # room by style; what is cut off is dropped, never shortened
policy:                        # what happens to an answer with its score, 1 to 10
  keep_at: 8                   # kept from here on
  rewrite_at: 2                # repaired once from here to keep_at; dropped below. null repairs nothing
rewrite:                       # repairing
  max_new_tokens: 160          # room for the whole new answer
  min_gain: 1.0                # points by which the new score must exceed the old one
"""
_TAIL = """\
merge:                         # answers become conversations of several turns
  max_turns: 8                 # most questions in one conversation
dedup:                         # the same picture in two files, asked the same, is kept once
  radius_bits: 4               # how alike pictures must be: 0 equal, 10 very loosely
publish:                       # the Parquet files
  rows_per_file: 2000          # conversations in one file

images_per_shard: 64           # pictures in one piece of work; a kill costs at most what is under way
images_in_flight: 256          # pictures that a worker has under way at once
max_failed_share: 0.25         # if more calls than this fail, the run stops instead of going on without them

executor:                      # where the work is done; none of it changes what comes out
  kind: local                  # local: this process; ray: workers here or on a cluster
  num_workers: 1               # Ray workers
  cpus_per_worker: 1           # cores for each of them
"""


def next_steps(starter: Starter) -> Sequence[str]:
    """What to type after `init`."""
    run = f"python pipelines/synth.py --config {starter.path}"
    if starter.is_drawn or starter.endpoint is not None or starter.model is not None:
        return [run]
    return [f"vllm serve {DEFAULT_MODEL} --port 8000", run]
