"""`infinity-mm`: the workbench's functions for people, with help texts, progress and `--json`.

Imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infinity_mm.commands.compare import compare
from infinity_mm.commands.plan import plan
from infinity_mm.commands.replay import replay
from infinity_mm.errors import UserError, explain

app = typer.Typer(
    name="infinity-mm",
    help="Images in, instruction data and a fine-tuned vision-language model out, with every step measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
windtunnel = typer.Typer(help="The drawn world whose truth is known.", no_args_is_help=True)
app.add_typer(windtunnel, name="windtunnel")
app.command()(plan)
app.command()(compare)
app.command()(replay)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Model = Annotated[
    str, typer.Argument(help="A shipped model (nano-base, nano-teacher), a checkpoint folder or a Hub id.")
]


@app.command()
def demo(
    run_dir: Annotated[Path, typer.Option(help="Where the run goes; the same folder again resumes.")] = Path(
        "runs/demo"
    ),
    images: Annotated[int, typer.Option(help="Held-out-world images to synthesise from.", min=4)] = 200,
    seed: Annotated[int, typer.Option(help="Seed of worlds, plan and training.")] = 0,
    workers: Annotated[int, typer.Option(help="Ray workers; 0 runs in this process.", min=0)] = 2,
    steps: Annotated[int, typer.Option(help="Optimiser steps of every student.", min=1)] = 100,
    eval_images: Annotated[int, typer.Option(help="Held-out images for evaluating students.", min=1)] = 160,
    as_json: JsonFlag = False,
) -> None:
    """Run the whole loop on the wind tunnel: images, data, five students, all measured against the truth."""
    from infinity_mm.windtunnel.demo import DemoConfig, print_demo, run_demo

    config = DemoConfig(
        run_dir=str(run_dir.absolute()),
        num_images=images,
        seed=seed,
        num_workers=workers,
        student_steps=steps,
        eval_images=eval_images,
    )
    summary = run_demo(config, console=_console(as_json))
    if as_json:
        _print_json(summary)
    else:
        print_demo(summary, Console())


@app.command(name="eval")
def evaluate(
    model: Model,
    task: Annotated[str, typer.Option(help="Evaluation task.")] = "windtunnel",
    world_seed: Annotated[int, typer.Option(help="Which held-out world.")] = 1,
    images: Annotated[int, typer.Option(help="Number of held-out images.", min=1)] = 200,
    questions_per_image: Annotated[int, typer.Option(min=1)] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Accuracy of a model, with the blank-image control beside it."""
    if task != "windtunnel":
        raise explain(what=f"there is no task `{task}`", where="--task", fix="use windtunnel")
    from infinity_mm.engines.transformers import TransformersSpec
    from infinity_mm.eval.memory_images import MemoryImages
    from infinity_mm.eval.windtunnel import evaluate_windtunnel

    with _console(as_json).status(f"asking {model} about {images} held-out images"):
        result = evaluate_windtunnel(
            TransformersSpec(model=model),
            MemoryImages(),
            world_seed=world_seed,
            num_images=images,
            questions_per_image=questions_per_image,
        )
    if as_json:
        _print_json(result)
    else:
        _print_eval(model, result)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run directory, finished or not: a path or a URL.")],
    samples: Annotated[int, typer.Option(help="Most samples in one section of the page.", min=2)] = 48,
    seed: Annotated[int, typer.Option(help="Decides which samples are shown.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write `report/index.html` of a run: the funnel, the figures, and pictures with what was made of them."""
    from infinity_mm.report.run_report import ReportConfig, write_report

    written = write_report(run, ReportConfig(per_section=samples, seed=seed))
    if as_json:
        _print_json(written.to_plain())
    else:
        size = f"{written.bytes / 1e6:.1f} MB, {written.rows} samples, {written.pictures} pictures"
        Console().print(f"wrote {written.path} ({size})", highlight=False, markup=False, soft_wrap=True)


@app.command()
def trace(
    run: Annotated[str, typer.Argument(help="A run directory, finished or not.")],
    sample: Annotated[str, typer.Argument(help="Id of a sample, or the beginning of its image's id.")] = "",
    image: Annotated[str, typer.Option(help="SHA-256 of an image, or the beginning of it.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Say where a sample or an image comes from, which calls made it, and what became of it and why."""
    from infinity_mm.report.trace import trace_image, trace_sample
    from infinity_mm.report.trace_print import print_image, print_sample
    from infinity_mm.runtime.run import Run

    if bool(sample) == bool(image):
        raise explain(
            what="trace needs a sample id or an image, and not both",
            where="infinity-mm trace",
            fix="infinity-mm trace RUN SAMPLE_ID, or infinity-mm trace RUN --image SHA256",
        )
    found = trace_image(Run(run), image) if image else trace_sample(Run(run), sample)
    if as_json:
        _print_json(found)
    else:
        (print_image if image else print_sample)(found, Console())


@app.command(name="try")
def try_(
    images: Annotated[list[str], typer.Argument(help="Image files, folders, or patterns in quotes.")],
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server, as in http://localhost:8000/v1.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Its name on the server; without --endpoint nano-teacher (drawn pictures only), a folder or a Hub id."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Most pictures to work.", min=1, max=1000)] = 20,
    questions: Annotated[int, typer.Option(help="Kinds of question for each picture.", min=1, max=10)] = 3,
    tagger: Annotated[
        str | None,
        typer.Option(
            help="open_clip model that tags pictures, so that questions fit them, as in ViT-B-32/laion2b_s34b_b79k "
            "(downloads 600 MB once). Default: no tags, kinds of question that fit any picture."
        ),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the server's key.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder for page and run; default: one below runs/try for this very command."),
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Show the page in a browser; default: in a terminal."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Try the synthesis on some of your own pictures: one page of what is kept, repaired and dropped, and why.

    The same command again goes on where it was; with a larger --n it goes further.
    """
    from infinity_mm.trial.show import run_and_show

    code = run_and_show(
        images,
        endpoint=endpoint,
        model=model,
        num_pictures=n,
        questions_per_image=questions,
        tagger=tagger,
        api_key_env=api_key_env,
        out=out,
        open_page=open_page,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The YAML file to write.")] = Path("synth.yaml"),
    images: Annotated[
        str | None,
        typer.Option(help="Folder or URL of your images; without it drawn pictures and nano-teacher."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server; default with --images: http://localhost:8000/v1."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The teacher's name on the server, a folder or a Hub id.")
    ] = None,
    tagger: Annotated[
        str | None,
        typer.Option(help="open_clip model that tags pictures, or `none` for no tags and no download."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the server's key.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a first configuration for pipelines/synth.py, with every key explained."""
    from infinity_mm.trial.starter import Starter, next_steps, write_starter

    starter = Starter(
        path=path, images=images, endpoint=endpoint, model=model, tagger=tagger, api_key_env=api_key_env
    )
    config = write_starter(starter, force=force)
    steps = list(next_steps(starter))
    if as_json:
        _print_json({"config": str(path), "run_dir": config.run_dir, "next_commands": steps})
    else:
        lines = "\n".join(f"  {step}" for step in steps)
        Console().print(f"wrote {path}; next:\n{lines}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def tree(
    name: Annotated[
        str,
        typer.Argument(
            help="windtunnel, default, grounding, any_picture, or the path of a YAML file, which is checked."
        ),
    ] = "default",
    as_json: JsonFlag = False,
) -> None:
    """Print the types of question of an instruction tree with counts, or say what is wrong with its file."""
    from infinity_mm.taxonomy.tree import Tree
    from infinity_mm.taxonomy.tree_print import print_tree, tree_figures

    found = Tree.load(name)
    _print_json(tree_figures(found)) if as_json else print_tree(found, Console())


@app.command()
def label_seeds(
    source: Annotated[
        str,
        typer.Argument(
            help="A .jsonl file with rows of `question`, `tags`, maybe `type`; or a run whose pass `tag` is done."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The JSONL file to write, for plan.seeds.")],
    engine: Annotated[
        Path, typer.Option(help="YAML file with the keys of engines.teacher: kind, model, ...")
    ],
    tree: Annotated[str, typer.Option(help="Instruction tree, as for plan.tree.")] = "default",
    show_images: Annotated[
        bool, typer.Option("--show-images", help="A run's images go to the model with the questions.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a model say of which type known questions are: seeds for the mapping from tags to types.

    The replies are journaled beside the file: the same command again goes on where it was. What gets no type is listed
    with its reason beside the seeds.
    """
    import asyncio

    from infinity_mm.config import load_config
    from infinity_mm.engines.spec import EngineConfig
    from infinity_mm.taxonomy.label_seeds import label_seeds as run
    from infinity_mm.taxonomy.tree import Tree

    spec = load_config(EngineConfig, engine, []).spec()
    with _console(as_json).status(f"labelling {source}"):
        found = asyncio.run(run(source, out, tree=Tree.load(tree), spec=spec, show_images=show_images))
    _print_json(found) if as_json else Console().print_json(json.dumps(found))


@app.command()
def calibrate_tags(
    labels: Annotated[Path, typer.Argument(help="JSONL rows of `image`, `tags` and maybe `absent`.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write, for tagger.calibration.")],
    model: Annotated[str, typer.Option(help="As tagger.model.")],
    vocabulary: Annotated[str, typer.Option(help="As tagger.vocabulary.")] = "general",
    prompt: Annotated[str, typer.Option(help="As tagger.prompt.")] = "a photo of {tag}",
    isotonic: Annotated[bool, typer.Option("--isotonic", help="Any rising curve; for many labels.")] = False,
    min_labels: Annotated[
        int, typer.Option(help="Images with a tag, and without, that it needs for a curve of its own.", min=1)
    ] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Turn a tagger's scores into probabilities, from images whose true tags are known."""
    from infinity_mm.taxonomy.calibrate import calibrate
    from infinity_mm.taxonomy.tagger import TaggerConfig

    config = TaggerConfig(model=model, vocabulary=vocabulary, prompt=prompt)
    method = "isotonic" if isotonic else "platt"
    with _console(as_json).status(f"tagging the images of {labels}"):
        found = calibrate(labels, config, method=method, min_labels=min_labels, out=out)
    _print_json(found) if as_json else Console().print_json(json.dumps(found))


@app.command()
def doctor(
    endpoint: Annotated[str | None, typer.Option(help="A model server that a run will ask.")] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(help="Folder or URL that a run will be written to; default: the current folder."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the server's key.")
    ] = None,
    packing: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Instead: does packing keep samples apart with this checkpoint, per attention backend?",
        ),
    ] = None,
    convert: Annotated[
        bool, typer.Option(help="With --packing: check what model.convert makes of the checkpoint.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at versions, GPU, memory, disk, Ray, Hub and model server, with a fix for every finding; 1 on problems."""
    from dataclasses import asdict

    if packing is not None:
        from infinity_mm.doctor.packing import check_packing, is_isolated, print_packing

        results = check_packing(packing, convert=convert)
        _print_json({"packing": [asdict(one) for one in results]}) if as_json else print_packing(
            results, Console()
        )
        if not is_isolated(results):
            raise typer.Exit(1)
        return
    from infinity_mm.doctor.checks import CHECKS, print_findings
    from infinity_mm.doctor.finding import Asked, run_checks

    with Console(stderr=True).status("looking around; starting Ray takes a few seconds"):
        findings = run_checks(Asked(run_dir=run_dir, endpoint=endpoint, api_key_env=api_key_env), CHECKS)
    if as_json:
        _print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings, Console())
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def assemble(
    config: Annotated[
        Path, typer.Argument(help="Which parts: a file such as configs/models/aquila_vl_2b.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example vision=/models/siglip.")
    ] = None,
) -> None:
    """Put a vision tower and a language model together with a fresh connector, as a checkpoint folder."""
    from infinity_mm.config import load_config
    from infinity_mm.model.parts import PartsSpec, build_from_parts

    model, processor = build_from_parts(load_config(PartsSpec, config, overrides or []))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    Console().print(f"{out}: {num_parameters:,} parameters", highlight=False)


@app.command()
def publish(
    target: Annotated[str, typer.Argument(help="A run directory (path or URL), or a checkpoint folder.")],
    repo: Annotated[str, typer.Option(help="USER/NAME or ORG/NAME on the Hub.")],
    private: Annotated[bool, typer.Option(help="Make the repository private, if it has to be made.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would go where; nothing is written.")] = False,
    endpoint: Annotated[
        str | None, typer.Option(help="Another Hub; default HF_ENDPOINT, then the public one.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Publish a run as a data set, or a checkpoint as a model, on the Hugging Face Hub.

    Readers of `main` see the whole set or nothing of it, and the same command again goes on where it was. Log in first
    with `hf auth login`, or set HF_TOKEN.
    """
    from infinity_mm.publishing import target as publishing

    console = _console(as_json)
    if dry_run:
        plan = publishing.dry_run(target, repo=repo, private=private, endpoint=endpoint)
        _print_json(plan) if as_json else publishing.print_plan(plan, console)
        return
    done = publishing.publish_target(
        target,
        repo=repo,
        private=private,
        endpoint=endpoint,
        say=lambda line: console.print(line, markup=False, highlight=False),
    )
    _print_json(done) if as_json else publishing.print_done(done, console)


@windtunnel.command()
def gallery(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("runs/gallery.html"),
    world_seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    per_family: Annotated[int, typer.Option(help="Pictures of each family.", min=1)] = 12,
    as_json: JsonFlag = False,
) -> None:
    """Write a page with pictures of the world, their questions, right answers and wrong ones."""
    from infinity_mm.windtunnel.gallery import write_gallery

    out.parent.mkdir(parents=True, exist_ok=True)
    write_gallery(out, world_seed=world_seed, num_per_family=per_family)
    _print_json({"gallery": str(out)}) if as_json else Console().print(f"wrote {out}")


@windtunnel.command()
def teacher(
    model: Model = "nano-teacher",
    world_seed: Annotated[int, typer.Option(help="Which held-out world.")] = 1,
    images: Annotated[int, typer.Option(help="Number of held-out images.", min=1)] = 200,
    as_json: JsonFlag = False,
) -> None:
    """Measure a teacher: its questions, its judging (also blind), what a cut at 8 keeps of its answers."""
    from infinity_mm.engines.transformers import TransformersSpec
    from infinity_mm.eval.memory_images import MemoryImages
    from infinity_mm.windtunnel.teacher import measure_teacher

    with _console(as_json).status(f"measuring {model} on {images} held-out images"):
        result = measure_teacher(
            TransformersSpec(model=model), MemoryImages(), world_seed=world_seed, num_images=images
        )
    _print_json(result) if as_json else Console().print_json(json.dumps(result))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    startup_timeout_s: Annotated[float, typer.Option(help="How long loading may take, in seconds.")] = 1800.0,
) -> None:
    """Serve a checkpoint with vLLM, which must be installed, over OpenAI's protocol; Ctrl-C ends it.

    Every other option goes to vLLM as it is, as in --max-model-len 8192 --tensor-parallel-size 2.
    """
    from infinity_mm.serving.server import ServeConfig
    from infinity_mm.serving.server import serve as run

    config = ServeConfig(
        model=model,
        host=host,
        port=port,
        startup_timeout_s=startup_timeout_s,
        vllm_args=tuple(context.args),
    )
    raise typer.Exit(run(config, say=lambda line: print(line, flush=True)))


# formats: import and export of training data
@app.command(name="import")
def import_data(
    format: Annotated[str, typer.Argument(help="llava, messages, infinity-mm or coco.")],
    path: Annotated[
        Path, typer.Argument(help="JSON file (llava, coco); file or folder of Parquet or tars (the others).")
    ],
    out: Annotated[Path, typer.Option(help="New folder to write; it appears whole or not at all.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder that image names are relative to; default: that of the file.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Data set name for rows that give none.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence for rows that give none.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read training data of another format into the layout that runs publish and `train/sft.py` reads.

    Every row is taken or listed in rejected.jsonl with its reason. Exits with 1 if no row could be taken.
    """
    from infinity_mm.formats.convert import import_data

    with _console(as_json).status(f"reading {path}"):
        summary = import_data(format, path, out, images=images, source=source, licence=licence)
    _print_conversion(summary, out, as_json)


@app.command(name="export")
def export_data(
    run_or_folder: Annotated[
        Path,
        typer.Argument(
            help="A finished run, or a folder that `import` wrote; with --with-code a model as `serve` takes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder to write; it appears whole or not at all.")],
    to: Annotated[
        str | None, typer.Option(help="messages, llava, infinity-mm, swift or llamafactory.")
    ] = None,
    onto: Annotated[
        Path | None,
        typer.Option(
            help="With --to infinity-mm: the tars the images came from; each is written again, extended."
        ),
    ] = None,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Copy a checkpoint with the model's code beside it.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write rows in the format of another tool (--to), or a checkpoint that loads without this package (--with-code).

    Image bytes stay as they are. Rows that the format cannot hold are listed in rejected.jsonl. Exits with 1 if no row
    could be written. With --onto the turns that a run made are appended to the records whose images they are about.
    What --with-code writes loads in transformers and vLLM with trust_remote_code.
    """
    if with_code == (to is not None):
        raise explain(
            what="export needs --to FORMAT for data or --with-code for a checkpoint, and not both",
            where="infinity-mm export",
            fix="infinity-mm export RUN --to FORMAT --out DIR, or infinity-mm export CHECKPOINT --with-code --out DIR",
        )
    if to is None:
        from infinity_mm.serving.with_code import export_with_code

        code = export_with_code(str(run_or_folder), out)
        if as_json:
            _print_json({"out": str(out), "code": [path.name for path in code]})
        else:
            Console().print(
                f"wrote {out} with {len(code)} files of code; load it with trust_remote_code=True",
                markup=False,
                soft_wrap=True,
            )
        return
    from infinity_mm.formats.convert import export_data, extend_data

    if onto is not None and to != "infinity-mm":
        raise explain(
            what=f"--onto extends Infinity-MM's own tars, not {to}",
            where="infinity-mm export",
            fix="infinity-mm export RUN --to infinity-mm --onto SHARDS --out DIR",
        )
    with _console(as_json).status(f"reading {run_or_folder}"):
        summary = (
            export_data(run_or_folder, to, out) if onto is None else extend_data(run_or_folder, onto, out)
        )
    _print_conversion(summary, out, as_json)


def _print_conversion(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    from infinity_mm.formats.convert import REJECTED_FILE

    if as_json:
        _print_json(summary | {"out": str(out)})
    else:
        console = Console(highlight=False)
        console.print(
            f"{summary['rows']} rows in {summary['read']}: {summary['taken']} written as {summary['written']} "
            f"({summary['text_only']} of text only, {summary['multi_image']} with several images), "
            f"{summary['rejected']} rejected"
        )
        for reason, count in summary["reasons"].items():
            console.print(f"  {count:>8}  {reason}")
        for name, count in summary["not_carried"].items():
            console.print(
                f"  {count:>8}  rows without their field `{name}`, which has no place", markup=False
            )
        console.print(
            f"wrote {out}; what was rejected is in {out / REJECTED_FILE}", soft_wrap=True, markup=False
        )
    if not summary["taken"]:
        raise typer.Exit(1)


def _console(as_json: bool) -> Console:
    """With `--json`, standard output holds the JSON alone and progress goes to standard error."""
    return Console(stderr=as_json)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_eval(model: str, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{model} on held-out world {result['world_seed']}")
    for column in ("", "accuracy", "blank image", "questions"):
        table.add_column(column, justify="left" if not column else "right")
    for group in ("by_family", "by_type"):
        for name, row in result[group].items():
            blank = f"{row['accuracy_blank_image']:.1%}"
            table.add_row(name, f"{row['accuracy']:.1%}", blank, str(row["num_questions"]))
        table.add_section()
    total = str(result["num_questions"])
    table.add_row("all", f"{result['accuracy']:.1%}", f"{result['accuracy_blank_image']:.1%}", total)
    Console().print(table)


def main() -> None:
    """Run the command line; a user error is printed without a traceback and exits with 2."""
    try:
        app()
    except UserError as error:
        console = Console(stderr=True)
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), highlight=False, markup=False, soft_wrap=True)  # it may hold [brackets]
        sys.exit(2)
