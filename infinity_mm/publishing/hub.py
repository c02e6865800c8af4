"""A bundle onto the Hugging Face Hub: readers of `main` see the whole new set or the whole old one.

    missing files --preupload, commit--> branch infinity-mm-upload-<digest>     (again and again until none is missing)
    listing of the branch: every size and hash right? --> ONE commit on main: copies by reference, manifest, card
    --> listing of main --> branch deleted

Every step can be repeated: the same call after a kill looks at what is there and does the rest.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from infinity_mm.errors import UserError, explain, need
from infinity_mm.publishing.bundle import MANIFEST, Bundle, File, listed
from infinity_mm.publishing.markdown import size

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

BRANCH = "infinity-mm-upload-"
MAX_COMMIT_FILES = 100
"""Files of one commit on the upload branch."""
MAX_COMMIT_BYTES = 2 << 30
"""Bytes of one commit on the upload branch: a kill costs no upload, but the branch shows progress."""
FILES_AT_ONCE = 4
"""Files uploaded side by side; those made in memory are held for so long."""
TRIES = 5
"""Tries of one step on a 5xx, a 429 or a broken connection."""
_T = TypeVar("_T")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` did."""

    url: str
    commit: str
    """Head of `main`, which shows the set."""
    num_files: int
    num_uploaded: int
    """Not on the upload branch when this call began; of these the Hub takes only the bytes it has not."""
    bytes_uploaded: int
    removed: tuple[str, ...]
    """Files of an earlier set of ours that this one has not."""


@dataclass(frozen=True, kw_only=True)
class State:
    """How the Hub stands to a bundle; see `look`."""

    exists: bool
    on_main: frozenset[str]
    """Paths that are on `main` as they should be."""
    on_branch: frozenset[str]
    """Paths that an interrupted call has uploaded."""
    removed: tuple[str, ...]
    """Paths on `main` that the commit would remove."""


def branch_of(bundle: Bundle) -> str:
    """Where the files of this very content are gathered."""
    return f"{BRANCH}{bundle.digest[:12]}"


def look(bundle: Bundle, repo: str, *, endpoint: str | None = None) -> State:
    """Ask the Hub what is there, with reading requests alone."""
    _need_hub()
    with _told(repo, endpoint):
        return _Repo(bundle, repo, endpoint).state()


def publish(bundle: Bundle, repo: str, *, private: bool, endpoint: str | None = None, say: Say) -> Published:
    """Bring `main` of a repository to this bundle; the same call after a kill goes on.

    Raises `UserError`, without any token or signed address in it, if the Hub refuses, if it lists other bytes than were
    sent, or if a private repository was asked for and the one that exists is public.
    """
    _need_hub()
    with _told(repo, endpoint):
        return _Repo(bundle, repo, endpoint).publish(private=private, say=say)


class _Repo:
    def __init__(self, bundle: Bundle, repo: str, endpoint: str | None) -> None:
        import huggingface_hub
        from huggingface_hub import HfApi

        self._errors = huggingface_hub.errors
        self._api: HfApi = HfApi(endpoint=endpoint)
        _check_endpoint(self._api.endpoint)
        self._bundle, self._repo, self._kind = bundle, repo, bundle.kind
        self._branch = branch_of(bundle)
        self._right: dict[tuple[str, str], bool] = {}

    def state(self) -> State:
        try:
            head = self._head("main")
        except self._errors.RepositoryNotFoundError:
            return State(exists=False, on_main=frozenset(), on_branch=frozenset(), removed=())
        there = self._listing(head)
        try:
            waiting = self._listing(self._head(self._branch))
        except self._errors.RevisionNotFoundError:
            waiting = {}
        return State(
            exists=True,
            on_main=frozenset(self._there(there)),
            on_branch=frozenset(self._there(waiting)) if waiting else frozenset(),
            removed=tuple(self._outdated(there, head)),
        )

    def publish(self, *, private: bool, say: Say) -> Published:
        self._create(private)
        sent: list[File] = []
        removed: list[str] = []
        for attempt in itertools.count():
            head = self._try(self._head, "main")
            if self._is_done(head):
                say("main has this very set")
                break
            try:
                head, removed = self._show(self._gather(head, sent, say), say)
                break
            except self._errors.RevisionNotFoundError:
                # Another process published the same set and took the branch away under our hands.
                if attempt == TRIES - 1:
                    raise
        self._try(self._delete_branch)
        return Published(
            url=f"{self._api.endpoint}/{'datasets/' if self._kind == 'dataset' else ''}{self._repo}",
            commit=head,
            num_files=len(self._bundle.files),
            num_uploaded=len({file.path for file in sent}),
            bytes_uploaded=sum({file.path: file.bytes for file in sent}.values()),
            removed=tuple(removed),
        )

    def _create(self, private: bool) -> None:
        wanted = True if private else None
        self._try(self._api.create_repo, self._repo, repo_type=self._kind, private=wanted, exist_ok=True)
        info = self._try(self._api.repo_info, self._repo, repo_type=self._kind)
        if private and info.private is False:
            raise explain(
                what=f"{self._repo} is public, and --private was given",
                where=f"{self._api.endpoint}",
                fix="make it private in its settings on the Hub, give another name, or leave out --private",
            )

    def _gather(self, head: str, sent: list[File], say: Say) -> str:
        """Bring all files onto the upload branch; returns its verified head."""
        self._try(
            self._api.create_branch,
            self._repo,
            repo_type=self._kind,
            branch=self._branch,
            revision=head,
            exist_ok=True,
        )
        missing: list[File] = []
        for attempt in range(TRIES):
            tip = self._try(self._head, self._branch)
            there = self._there(self._try(self._listing, tip))
            missing = [file for file in self._bundle.files if file.path not in there]
            if not missing:
                say(f"{self._branch}: {len(there)} files, sizes and hashes as they should be")
                return tip
            if attempt:
                say(f"{len(missing)} files are not as sent, sending them again")
            for batch in _batches(missing):
                self._send(batch, sent, say)
        raise explain(
            what=f"the Hub does not list `{missing[0].path}` with the size and hash it was sent with "
            f"({len(missing)} such files)",
            where=f"{self._api.endpoint}, {self._repo}, branch {self._branch}",
            fix="look there; a .gitignore in the repository that matches the file would do this",
        )

    def _send(self, batch: Sequence[File], sent: list[File], say: Say) -> None:
        from huggingface_hub import CommitOperationAdd

        operations: list[CommitOperationAdd] = []
        for start in range(0, len(batch), FILES_AT_ONCE):
            group = batch[start : start + FILES_AT_ONCE]
            adds = [CommitOperationAdd(file.path, _checked(file)) for file in group]
            self._try(
                self._api.preupload_lfs_files,
                self._repo,
                adds,
                repo_type=self._kind,
                revision=self._branch,
                num_threads=FILES_AT_ONCE,
            )
            operations += adds
            sent += group
            for file in group:
                say(f"  {file.path}  {size(file.bytes)}")
        message = f"infinity_mm: {len(batch)} files of {self._bundle.digest[:12]}"
        try:
            self._api.create_commit(
                self._repo, operations, commit_message=message, repo_type=self._kind, revision=self._branch
            )
        except Exception as error:
            if not self._is_transient(error):
                raise
            say("the commit got no answer; looking whether it was made")
            time.sleep(1)

    def _show(self, tip: str, say: Say) -> tuple[str, list[str]]:
        """The one commit on main; returns main's head and what was removed."""
        from huggingface_hub import CommitOperationCopy, CommitOperationDelete

        for attempt in range(TRIES):
            head = self._try(self._head, "main")
            there = self._try(self._listing, head)
            removed = self._try(self._outdated, there, head)
            present = self._there(there)
            if len(present) == len(self._bundle.files) and not removed:
                return head, []  # an answer was lost, or another process was faster
            copies = [
                CommitOperationCopy(file.path, file.path, src_revision=tip)
                for file in self._bundle.files
                if file.path not in present
            ]
            try:
                commit = self._api.create_commit(
                    self._repo,
                    [*copies, *(CommitOperationDelete(path) for path in removed)],
                    commit_message=f"{len(self._bundle.files)} files, {self._bundle.digest[:12]}",
                    repo_type=self._kind,
                    revision="main",
                    parent_commit=head,
                )
            except Exception as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if attempt == TRIES - 1 or not (self._is_transient(error) or status in (409, 412)):
                    raise
                time.sleep(2**attempt)
                continue
            if not self._is_done(commit.oid):
                raise explain(
                    what="main does not show the set that was committed",
                    where=f"{self._api.endpoint}, {self._repo}, commit {commit.oid}",
                    fix="look there for another process that writes to main, then run the same command again",
                )
            say(f"main: one commit, {len(copies)} files put there, {len(removed)} removed")
            return commit.oid, removed
        raise AssertionError("unreachable")

    def _delete_branch(self) -> None:
        # Refused by the Hub if it is not there, which is how an earlier call may have left it.
        try:
            self._api.delete_branch(self._repo, repo_type=self._kind, branch=self._branch)
        except self._errors.HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise

    def _is_done(self, revision: str) -> bool:
        there = self._try(self._listing, revision)
        return len(self._there(there)) == len(self._bundle.files) and not self._outdated(there, revision)

    def _head(self, revision: str) -> str:
        sha = self._api.repo_info(self._repo, repo_type=self._kind, revision=revision).sha
        assert sha is not None
        return sha

    def _listing(self, revision: str) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        tree = self._api.list_repo_tree(self._repo, repo_type=self._kind, revision=revision, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _there(self, listing: Mapping[str, RepoFile]) -> set[str]:
        """Paths of ours that are listed with the right size and hash."""
        return {
            file.path
            for file in self._bundle.files
            if (entry := listing.get(file.path)) is not None and self._is_right(file, entry)
        }

    def _is_right(self, file: File, entry: RepoFile) -> bool:
        if entry.size != file.bytes:
            return False
        if entry.lfs is not None:
            return entry.lfs.sha256 == file.sha256
        key = (file.path, entry.blob_id)  # small files are listed with git's hash of them
        if key not in self._right:
            self._right[key] = _git_hash(file) == entry.blob_id
        return self._right[key]

    def _outdated(self, listing: Mapping[str, RepoFile], revision: str) -> list[str]:
        """Files that the manifest on main lists and the bundle has not; nobody else's file is ever removed."""
        if MANIFEST not in listing:
            return []
        local = self._api.hf_hub_download(self._repo, MANIFEST, repo_type=self._kind, revision=revision)
        ours = {file.path for file in self._bundle.files}
        return sorted(
            path for path in listed(Path(local).read_bytes()) if path in listing and path not in ours
        )

    def _try(self, step: Callable[..., _T], *args: Any, **options: Any) -> _T:
        for attempt in itertools.count():
            try:
                return step(*args, **options)
            except Exception as error:
                if attempt == TRIES - 1 or not self._is_transient(error):
                    raise
            time.sleep(2**attempt)
        raise AssertionError("unreachable")

    def _is_transient(self, error: BaseException) -> bool:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status == 429 or status >= 500
        cause = error.__cause__
        broken = type(error).__module__.startswith("httpx") or isinstance(
            error, (ConnectionError, TimeoutError)
        )
        return broken or (cause is not None and self._is_transient(cause))


def _checked(file: File) -> bytes | str:
    """The content, if it is still what the bundle says."""
    content = file.load()
    if isinstance(content, bytes):
        found = hashlib.sha256(content).hexdigest()
    else:
        with content.open("rb") as data:
            found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != file.sha256:
        raise explain(
            what=f"`{file.path}` has changed since this command began",
            where=str(content) if isinstance(content, Path) else file.path,
            fix="stop what writes to it, and run the same command again",
        )
    return content if isinstance(content, bytes) else str(content)


def _git_hash(file: File) -> str:
    content = file.load()
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _batches(files: Sequence[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    for file in files:
        if batch and (
            len(batch) >= MAX_COMMIT_FILES or sum(f.bytes for f in batch) + file.bytes > MAX_COMMIT_BYTES
        ):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return
    raise explain(
        what=f"the endpoint {_redacted(endpoint)} is not https, and your token would travel in the clear",
        where="--endpoint or HF_ENDPOINT",
        fix="give an https:// address",
    )


@contextmanager
def _told(repo: str, endpoint: str | None) -> Iterator[None]:
    """Errors of libraries as one of ours, without what must not be seen: they quote signed addresses."""
    try:
        with _redacted_logs():
            yield
    except UserError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        where = f"{endpoint or os.environ.get('HF_ENDPOINT') or 'the Hub'}, {repo}"
        raise explain(
            what=_redacted(f"{type(error).__name__}: {error}".strip()),
            where=_redacted(where),
            fix=_fix(status, repo),
        ) from None


@contextmanager
def _redacted_logs() -> Iterator[None]:
    """The client's own warnings about requests that it repeats quote signed addresses as well."""

    def redact(record: logging.LogRecord) -> bool:
        record.msg, record.args = _redacted(record.getMessage()), ()
        record.exc_info, record.exc_text = None, None
        return True

    from huggingface_hub.utils import logging as hub_logging

    hub_logging.get_logger()  # makes the handler, if nothing was logged yet
    handlers = [*logging.getLogger("huggingface_hub").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(redact)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(redact)


def _fix(status: int | None, repo: str) -> str:
    if status in (401, 403, 404):
        return f"log in with `hf auth login` (or set HF_TOKEN) with a token that may write to {repo}"
    return "nothing is lost: run the same command again"


_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\")]*")
_USER = re.compile(r"(https?://)[^\s/@'\"]+@")
_TOKEN = re.compile(r"hf_[A-Za-z0-9_-]{4,}|(?i:bearer)\s+\S+")


def _redacted(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    for secret in filter(None, (token,)):
        text = text.replace(secret, "<token>")
    return _TOKEN.sub("<token>", _USER.sub(r"\1", _QUERY.sub(r"\1?...", text)))


def logged_in() -> bool:
    """Whether there is a token; its value goes nowhere but to the Hub's own client."""
    _need_hub()
    from huggingface_hub import get_token

    return get_token() is not None


def _need_hub() -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError as error:
        raise need("huggingface_hub", extra="publish", purpose="publishing") from error


def describe(state: State, bundle: Bundle) -> list[dict[str, Any]]:
    """One row per file: where it goes and what would be done."""
    rows: list[dict[str, Any]] = []
    for file in bundle.files:
        there = (
            "on main"
            if file.path in state.on_main
            else "uploaded"
            if file.path in state.on_branch
            else "to send"
        )
        rows.append({"path": file.path, "bytes": file.bytes, "sha256": file.sha256, "state": there})
    return rows
