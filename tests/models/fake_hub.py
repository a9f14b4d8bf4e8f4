"""A Hugging Face hub on this machine: repositories are dictionaries of files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".gguf", ".safetensors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """repositories: the files of each. gated: those that want an agreement. break_after: bytes
    after which the next answers end too early, one for each. forged: files that come with other
    bytes. empty: those of which nothing comes. ignores_ranges: whole files are sent whatever is
    asked for. fails: nothing is answered. asked: (method, path, range) of all requests."""

    repositories: Mapping[str, Mapping[str, bytes]]
    gated: set[str] = field(default_factory=set)
    break_after: list[int] = field(default_factory=list)
    forged: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    ignores_ranges: bool = False
    fails: bool = False
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def sent(self, name: str) -> list[str | None]:
        """The ranges that were asked for, of that file."""
        return [at for method, path, at in self.asked if method == "GET" and path.endswith(name)]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if hub.fails:
                return self._send(503, {}, b"no")
            parts = path.strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            repository = "/".join(parts[2:4] if api else parts[:2])
            files = hub.repositories.get(repository)
            if files is None:
                return self._send(401, {"X-Error-Code": "RepoNotFound"}, b"{}")
            if api:
                return self._send(200, {}, json.dumps(_info(repository, files)).encode())
            if repository in hub.gated:
                return self._send(403, {"X-Error-Code": "GatedRepo"}, b"{}")
            name = "/".join(parts[4:])
            if name not in files:
                return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return self._file(name, files[name])

        def _file(self, name: str, content: bytes) -> None:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(name, content)}"'}
            if name in hub.forged:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if name in hub.empty and self.command == "GET":
                return self._send(206, headers, b"")
            asked = self.headers.get("Range")
            if asked is None or hub.ignores_ranges:
                return self._send(200, headers, content)
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            return self._send(206, headers, content[begin:])

        def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if len(body) > 1000 and hub.break_after:
                self.wfile.write(body[: hub.break_after.pop(0)])
                self.close_connection = True
                return
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _etag(name: str, content: bytes) -> str:
    kind = hashlib.sha256 if name.endswith(LARGE) else hashlib.sha1
    return kind(content).hexdigest()


def _info(repository: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for name, content in files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0"}
        if name.endswith(LARGE):
            sha = _etag(name, content)
            entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
        siblings.append(entry)
    return {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
