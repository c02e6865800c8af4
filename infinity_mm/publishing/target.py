"""From what a person names, a run or a checkpoint, to a published repository: what the command line calls."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infinity_mm.errors import explain
from infinity_mm.publishing.bundle import Bundle
from infinity_mm.publishing.checkpoint_bundle import checkpoint_bundle
from infinity_mm.publishing.hub import Say, branch_of, describe, logged_in, look, publish
from infinity_mm.publishing.markdown import size
from infinity_mm.publishing.run_bundle import run_bundle
from infinity_mm.storage import files


def bundle_of(target: str, *, repo: str) -> Bundle:
    """A run directory (path or URL) as a data set, a model folder as a model."""
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise explain(
            what=f"`{repo}` is no repository name", where="--repo", fix="write USER/NAME or ORG/NAME"
        )
    if files.exists(files.join(target, "manifest")):
        return run_bundle(target, repo=repo)
    if "://" not in target and Path(target, "config.json").is_file():
        return checkpoint_bundle(Path(target), repo=repo)
    raise explain(
        what=f"{target} is neither a run directory (manifest/) nor a local model folder (config.json)",
        where="infinity-mm publish",
        fix="give a run_dir, or the folder with the safetensors",
    )


def dry_run(target: str, *, repo: str, private: bool, endpoint: str | None) -> dict[str, Any]:
    """What `publish_target` would do, without a request that writes."""
    bundle = bundle_of(target, repo=repo)
    state = look(bundle, repo, endpoint=endpoint)
    visibility = "private" if private else "public or as your account's default is"
    return {
        "repo": repo,
        "kind": bundle.kind,
        "repository": "exists" if state.exists else f"would be created, {visibility}",
        "branch": branch_of(bundle),
        "bytes": bundle.bytes,
        "files": describe(state, bundle),
        "would_remove": list(state.removed),
        "left_out": dict(bundle.left_out),
        "logged_in": logged_in(),
    }


def publish_target(
    target: str, *, repo: str, private: bool, endpoint: str | None, say: Say
) -> dict[str, Any]:
    """Publish; the same call after a kill goes on."""
    if not logged_in():
        raise explain(
            what="you are not logged in to the Hub",
            where="HF_TOKEN, or the token that `hf auth login` keeps",
            fix="run `hf auth login`, or set HF_TOKEN; a token is never taken from the command line",
        )
    bundle = bundle_of(target, repo=repo)
    for name, why in bundle.left_out.items():
        say(f"left out: {name} ({why})")
    done = publish(bundle, repo, private=private, endpoint=endpoint, say=say)
    return {"repo": repo, "kind": bundle.kind, **asdict(done), "left_out": dict(bundle.left_out)}


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """A dry run for people."""
    table = Table("file", "state", "SHA-256", title=f"{plan['kind']} {plan['repo']} ({plan['repository']})")
    table.add_column("size", justify="right")
    for row in plan["files"]:
        table.add_row(escape(row["path"]), row["state"], row["sha256"][:12], size(row["bytes"]))
    console.print(table)
    for path in plan["would_remove"]:
        console.print(f"would be removed from main: {path}", markup=False, highlight=False)
    for path, why in plan["left_out"].items():
        console.print(f"left out: {path} ({why})", markup=False, highlight=False)
    console.print(
        f"{len(plan['files'])} files, {size(plan['bytes'])}, by way of the branch {plan['branch']}; nothing was written"
        + ("" if plan["logged_in"] else "; you are not logged in, which publishing needs"),
        highlight=False,
    )


def print_done(done: dict[str, Any], console: Console) -> None:
    """What was published, for people."""
    console.print(
        f"{done['url']}: {done['num_files']} files on main in commit {done['commit'][:12]}, "
        f"{done['num_uploaded']} sent by this call",
        highlight=False,
        soft_wrap=True,
    )
