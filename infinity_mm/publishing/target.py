"""From what a person names, a run or a checkpoint, to a published repository: what the command line calls."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from infinity_mm.errors import explain
from infinity_mm.publishing.bundle import Bundle
from infinity_mm.publishing.checkpoint_bundle import checkpoint_bundle
from infinity_mm.publishing.hub import Say, branch_of, describe, logged_in, look, publish
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
