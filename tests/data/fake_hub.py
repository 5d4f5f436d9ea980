"""A hub of one dataset repository on this machine, as much of it as huggingface_hub asks for."""

import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "1" * 40


@dataclass
class FakeHub:
    """`files` are at COMMIT, which is main; those in `large` have a SHA-256 and lie behind a redirect.

    `cut` breaks off the first answer with a file in the middle, `failing` answers 503 for it; `asked` counts GETs.
    """

    repository: str = "owner/set"
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    asked: Counter = field(default_factory=Counter)
    gated: bool = False
    ranges: list[str] = field(default_factory=list)
    url: str = ""

    def info(self) -> dict:
        siblings = []
        for path, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            file: dict = {"rfilename": path, "size": len(data), "blobId": blob}
            if path in self.large:
                file["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 127}
            siblings.append(file)
        return {"id": self.repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub at `hub.url` on 127.0.0.1."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        hub, url = self.hub, urlparse(self.path)
        path = unquote(url.path)
        if path.startswith("/cdn/"):
            return self._file(path.removeprefix("/cdn/"), body)
        api, page = f"/api/datasets/{hub.repository}", f"/datasets/{hub.repository}/resolve/"
        if path == api or path.startswith(api + "/revision/"):
            if hub.gated:
                return self._error("GatedRepo", "Access to this dataset is restricted", status=403)
            revision = path.removeprefix(api).removeprefix("/revision/") or "main"
            if revision not in ("main", COMMIT):
                return self._error("RevisionNotFound", f"Invalid rev id: {revision}")
            assert parse_qs(url.query).get("blobs") == ["true"]
            return self._send(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"}, body)
        if path.startswith(page):
            revision, _, name = path.removeprefix(page).partition("/")
            assert revision == COMMIT
            if name not in hub.files:
                return self._error("EntryNotFound", "Entry not found")
            if name in hub.large:
                data = hub.files[name]
                headers = {"Location": f"{hub.url}/cdn/{name}", "X-Repo-Commit": COMMIT}
                headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
                return self._send(302, b"", headers, body)
            return self._file(name, body)
        return self._error("RepoNotFound", "Repository not found")

    def _file(self, name: str, body: bool) -> None:
        hub = self.hub
        data = hub.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers = {"ETag": f'"{blob}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not body:
            return self._send(200, data, headers, body)
        hub.asked[name] += 1
        if name in hub.failing:
            return self._send(503, b"busy", {}, body)
        if name in hub.cut:
            hub.cut.discard(name)
            self._send(200, data, headers, body, only=len(data) // 2)
            self.close_connection = True
            return None
        if wanted := self.headers.get("Range"):
            hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], headers, body)
        return self._send(200, data, headers, body)

    def _error(self, code: str, message: str, status: int = 404) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message}, self.command == "GET")

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool, only: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[:only])
            self.wfile.flush()
