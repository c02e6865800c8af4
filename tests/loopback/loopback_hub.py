"""A small Hugging Face Hub on loopback: repositories, branches, LFS uploads, commits, trees and downloads.

Written from the requests that `huggingface_hub` makes; without Xet. It keeps every state that `main` ever had, so that
a test can say what a reader could have seen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, final
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3
"""Entries on one page of a listing, so that paging is met."""
TOKEN = "hf_LoopbackSecretToken0123456789"
Hook = Callable[[int, str, str], str | None]
"""Number of the write since `restart`, method and path -> None, or a fault: `refuse` answers 503 and does nothing,
`lose` does it and answers 503. It may kill the client."""


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def git_hash(self) -> str:
        body = self.data
        if self.lfs:
            oid = hashlib.sha256(self.data).hexdigest()
            head = "version https://git-lfs.github.com/spec/v1"
            body = f"{head}\noid sha256:{oid}\nsize {len(self.data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


Tree = dict[str, Blob]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    seen: list[Tree] = field(default_factory=list)
    """Every state of `main`."""

    def commit(self, branch: str, tree: Tree) -> str:
        content = json.dumps([len(self.commits), sorted((p, b.git_hash) for p, b in tree.items())])
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        if branch == "main":
            self.seen.append(tree)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@final
class LoopbackHub:
    """Runs in threads of this process."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.one = threading.Lock()
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.mid_upload: Callable[[int, str], bool] | None = None
        """Called with the number and path of a write when half of an uploaded body has come; True ends the request."""
        self.writes: list[tuple[str, str]] = []
        self.uploads: list[str] = []
        """Objects that were sent in full, by SHA-256, again and again if they were."""
        self.tokens: set[str] = set()
        """`Authorization` headers of API requests."""
        self.leaks: list[str] = []
        """Requests to the storage that carried a token."""

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def restart(
        self,
        *,
        before: Hook | None = None,
        after: Hook | None = None,
        mid_upload: Callable[[int, str], bool] | None = None,
    ) -> None:
        """Count writes from 1 again, with these hooks."""
        with self.one:
            self.writes, self.before, self.after, self.mid_upload = [], before, after, mid_upload

    def main(self, repo: str) -> dict[str, bytes]:
        """Files on `main`, without the one that every repository begins with."""
        tree = self.repos[repo].commits[self.repos[repo].branches["main"]]
        return {path: blob.data for path, blob in tree.items() if path != ".gitattributes"}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news; anything else shows as an answer that the client does not get."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: LoopbackHub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._read_only()

    def do_HEAD(self) -> None:
        self._read_only()

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        # These two ask and change nothing.
        if path == "/api/validate-yaml" or re.search(r"/(preupload|paths-info)/|/objects/batch$", path):
            self._read_only()
        else:
            self._write()

    def do_PUT(self) -> None:
        self._write()

    def do_DELETE(self) -> None:
        self._write()

    def _read_only(self) -> None:
        body = self._body()
        with self.server_hub.one:
            answer = self._answer(body)
        self._send(*answer)

    def _write(self) -> None:
        hub, path = self.server_hub, urlsplit(self.path).path
        with hub.one:
            hub.writes.append((self.command, path))
            number = len(hub.writes)
            if hub.before and hub.before(number, self.command, path) == "refuse":
                self._body()
                self._send(503, {"error": "not now"})
                return
        if self.command == "PUT" and hub.mid_upload is not None:
            half = int(self.headers["Content-Length"]) // 2
            first = self.rfile.read(half)
            if hub.mid_upload(number, path):
                self.close_connection = True
                return
            body = first + self.rfile.read(int(self.headers["Content-Length"]) - half)
        else:
            body = self._body()
        with hub.one:
            answer = self._answer(body)
            lost = hub.after is not None and hub.after(number, self.command, path) == "lose"
        if lost:
            self._send(503, {"error": "not now"})
        else:
            self._send(*answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts: list[bytes] = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if "Content-Length" not in (headers or {}):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except OSError:  # the client was killed
            self.close_connection = True

    def _answer(self, body: bytes) -> tuple[Any, ...]:
        hub = self.server_hub
        parts = urlsplit(self.path)
        path = parts.path
        token = self.headers.get("Authorization")
        if path.startswith("/storage/"):
            if token:
                hub.leaks.append(path)
            return self._store(path, parse_qs(parts.query), body)
        if token:
            hub.tokens.add(token)
        if (
            self.command not in ("GET", "HEAD")
            and token != f"Bearer {TOKEN}"
            and path != "/api/validate-yaml"
        ):
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+)(/.*)?", path):
            kind, name, rest = match.groups()
            repo = hub.repos.get(f"{kind}s/{name}")
            if repo is None:
                return _missing("RepoNotFound", "Repository not found")
            return self._api(repo, kind, name, rest or "", parse_qs(parts.query), body)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(hub.repos[f"{'datasets' if match[1] else 'models'}/{match[2]}"], match, body)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = hub.repos.get(f"{'datasets' if match[1] else 'models'}/{match[2]}")
            return self._resolve(repo, unquote(match[3]), unquote(match[4]))
        return 404, {"error": f"no such page: {self.command} {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[Any, ...]:
        kind = wanted.get("type") or "model"
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        key = f"{kind}s/{name}"
        url = f"{self.server_hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if key in self.server_hub.repos:
            return 409, {"error": "You already created this repo", "url": url}
        repo = Repo(private=bool(wanted.get("private")) or wanted.get("visibility") == "private")
        repo.commit(
            "main", {".gitattributes": Blob(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n", False)}
        )
        self.server_hub.repos[key] = repo
        return 200, {"url": url, "name": name, "id": "1"}

    def _api(
        self, repo: Repo, kind: str, name: str, rest: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[Any, ...]:
        if match := re.fullmatch(r"(?:/revision/([^/]+))?", rest):
            revision = repo.resolve(unquote(match[1] or "main"))
            if revision is None:
                return _missing("RevisionNotFound", "Invalid rev id")
            tree = repo.commits[revision]
            return 200, {
                "id": name,
                "sha": revision,
                "private": repo.private,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "disabled": False,
                "gated": False,
                "siblings": [{"rfilename": path} for path in sorted(tree)],
            }
        if match := re.fullmatch(r"/branch/([^/]+)", rest):
            return self._branch(repo, unquote(match[1]), body)
        if match := re.fullmatch(r"/(tree|paths-info|preupload|commit)/([^/]+)(?:/(.*))?", rest):
            what, revision, inside = match[1], unquote(match[2]), unquote(match[3] or "")
            oid = repo.resolve(revision)
            if oid is None:
                return _missing("RevisionNotFound", "Invalid rev id")
            tree = repo.commits[oid]
            if what == "tree":
                return self._tree(tree, inside, query)
            if what == "paths-info":
                paths = _form(body, self.headers.get("Content-Type", ""))
                found = [_entry(p, tree[p]) for p in paths if p in tree]
                folders = [p for p in paths if p not in tree and any(q.startswith(f"{p}/") for q in tree)]
                return 200, [*found, *({"type": "directory", "path": p, "oid": "0" * 40} for p in folders)]
            if what == "preupload":
                return 200, {"files": [_mode(row, tree) for row in json.loads(body)["files"]]}
            return self._commit(repo, revision, tree, body, "datasets/" if kind == "dataset" else "", name)
        if rest == "/refs":
            rows = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": oid} for b, oid in repo.branches.items()
            ]
            return 200, {"branches": rows, "tags": [], "converts": []}
        return 404, {"error": f"no such API: {rest}"}

    def _branch(self, repo: Repo, branch: str, body: bytes) -> tuple[Any, ...]:
        if self.command == "DELETE":
            if branch not in repo.branches:
                return 404, {"error": "no such branch"}
            del repo.branches[branch]
            return 200, {}
        if branch in repo.branches:
            return 409, {"error": "Reference already exists"}
        start = repo.resolve(json.loads(body or b"{}").get("startingPoint", "main"))
        assert start is not None
        repo.branches[branch] = start
        return 200, {}

    def _tree(self, tree: Tree, inside: str, query: dict[str, list[str]]) -> tuple[Any, ...]:
        inside = inside.rstrip("/")
        paths = sorted(p for p in tree if not inside or p.startswith(f"{inside}/"))
        if inside and not paths:
            return _missing("EntryNotFound", "not found")
        depth = len(inside.split("/")) if inside else 0
        folders = {"/".join(p.split("/")[:d]) for p in paths for d in range(depth + 1, p.count("/") + 1)}
        entries = [_entry(p, tree[p]) for p in paths]
        entries += [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(folders)]
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = [e for e in entries if e["path"].count("/") == depth]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            again = "&".join(f"{k}={v[0]}" for k, v in query.items() if k != "cursor")
            url = f"{self.server_hub.url}{urlsplit(self.path).path}?{again}&cursor={start + PAGE}"
            headers["Link"] = f'<{url}>; rel="next"'
        return 200, entries[start : start + PAGE], headers

    def _commit(
        self, repo: Repo, branch: str, tree: Tree, body: bytes, kind: str, name: str
    ) -> tuple[Any, ...]:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.branches.get(branch)):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        tree = dict(tree)
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    if value["oid"] not in repo.lfs:
                        return 400, {"error": f"LFS object {value['oid']} is not there"}
                    tree[value["path"]] = Blob(repo.lfs[value["oid"]], True)
                case "deletedFile":
                    del tree[value["path"]]
                case other:
                    return 400, {"error": f"unknown operation {other}"}
        oid = repo.commit(branch, tree)
        url = f"{self.server_hub.url}/{kind}{name}/commit/{oid}"
        return 200, {"commitUrl": url, "commitOid": oid, "success": True}

    def _batch(self, repo: Repo, match: re.Match[str], body: bytes) -> tuple[Any, ...]:
        objects: list[dict[str, Any]] = []
        for wanted in json.loads(body)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.lfs:
                place = f"{'datasets' if match[1] else 'models'}/{match[2]}/{wanted['oid']}"
                href = f"{self.server_hub.url}/storage/{place}?X-Signature=signed-and-secret"
                row["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(row)
        return (
            200,
            {"transfer": "basic", "objects": objects},
            {"Content-Type": "application/vnd.git-lfs+json"},
        )

    def _store(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[Any, ...]:
        _, _, kind, user, name, oid = path.split("/")
        if query.get("X-Signature") != ["signed-and-secret"]:
            return 403, {"error": "not signed"}
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "these are other bytes"}
        self.server_hub.uploads.append(oid)
        self.server_hub.repos[f"{kind}/{user}/{name}"].lfs[oid] = body
        return 200, {}

    def _resolve(self, repo: Repo | None, revision: str, path: str) -> tuple[Any, ...]:
        oid = repo.resolve(revision) if repo else None
        if repo is None or oid is None:
            return _missing("RepoNotFound", "not found")
        if path not in repo.commits[oid]:
            return _missing("EntryNotFound", "Entry not found")
        blob = repo.commits[oid][path]
        etag = hashlib.sha256(blob.data).hexdigest() if blob.lfs else blob.git_hash
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(blob.data))}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(found[1]), int(found[2] or len(blob.data) - 1) + 1
            part = blob.data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(blob.data)}"
            return 206, part, headers
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(blob.data))
        return 200, blob.data, headers


def _missing(code: str, message: str) -> tuple[Any, ...]:
    return 404, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message}


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_hash}
    if blob.lfs:
        row["lfs"] = {
            "oid": hashlib.sha256(blob.data).hexdigest(),
            "size": len(blob.data),
            "pointerSize": 130,
        }
    return row


def _mode(row: dict[str, Any], tree: Tree) -> dict[str, Any]:
    is_lfs = row["path"].endswith((".parquet", ".safetensors", ".webp"))
    found = {"path": row["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
    if row["path"] in tree:
        blob = tree[row["path"]]
        found["oid"] = hashlib.sha256(blob.data).hexdigest() if blob.lfs else blob.git_hash
    return found


def _form(body: bytes, content_type: str) -> list[str]:
    if "json" in content_type:
        return list(json.loads(body)["paths"])
    return parse_qs(body.decode())["paths"]
