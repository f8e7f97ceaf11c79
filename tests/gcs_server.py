"""A bucket in memory behind the JSON interface of Google Cloud Storage, for both of its clients.

TensorStore (the arrays of checkpoints) and gcsfs (all other files) talk to it as to the real one,
so that a test of a remote workdir runs all of our code and theirs. It has what they use: objects
with generations and checksums, conditions on generations, listings in pages, ranges, and uploads
in one request or in parts. A bucket named `private` wants credentials; `read-only` takes none.
"""

import base64
import contextlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from typing import Any

BUCKET = "bucket"
_PAGE = 100  # objects a listing; the real one gives 1000
_TIME = "2026-01-01T00:00:00.000000Z"


class Store:
    """What lies in the buckets.

    Attributes:
      objects: name in `BUCKET` → its metadata, with the content under `data`.
      requests: method and path of each request, in order.
      before: called with DELETE, PATCH or PUT and a name before each change.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.before: Callable[[str, str], None] = lambda method, name: None
        self.lock = threading.RLock()
        self._generations = itertools.count(1)

    def put(self, name: str, data: bytes) -> dict[str, Any]:
        """Makes or replaces an object."""
        number = str(next(self._generations))
        # The real one has CRC-32C; whoever compares takes the text as it is.
        checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        about = {"name": name, "bucket": BUCKET, "size": str(len(data)), "crc32c": checksum}
        about |= {"generation": number, "metageneration": "1", "updated": _TIME}
        self.objects[name] = {**about, "timeCreated": _TIME, "data": data}
        return self.objects[name]

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin with `prefix`, in order."""
        return sorted(name for name in self.objects if name.startswith(prefix))

    def text(self, name: str) -> str:
        """The content of an object."""
        return self.objects[name]["data"].decode()


class Refused(Exception):
    """An HTTP status that stands for an error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", -1  # head and body in one packet: 40 ms a request
    store: Store
    uploads: dict[str, tuple[str, bytearray, dict[str, str]]]

    def log_message(self, *words: Any) -> None:
        pass

    def _serve(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.store.requests.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"(?:/\w+)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", url.path)
        assert found, self.path
        bucket, name = found[1], urllib.parse.unquote(found[2] or "")
        try:
            if bucket == "private":
                raise Refused(401)
            if bucket not in (BUCKET, "read-only"):
                raise Refused(404)
            if bucket == "read-only" and self.command != "GET":
                raise Refused(403)
            with self.store.lock:
                self._answer(name, query, body)
        except Refused as refused:
            status = refused.args[0]
            error = {"error": {"code": status, "message": f"status {status}"}}
            self._send(status, b"" if status == 304 else error)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _answer(self, name: str, query: dict[str, str], body: bytes) -> None:
        objects = self.store.objects
        if self.command == "POST" or "upload_id" in query:
            return self._upload(query, body)
        if not name:
            return self._list(query)
        if self.command != "GET":
            self.store.before(self.command, name)
        self._check(name, query)
        if name not in objects:
            raise Refused(404)
        if self.command == "DELETE":
            del objects[name]
            return self._send(204, b"")
        if self.command == "PATCH":
            number = int(objects[name]["metageneration"]) + 1
            objects[name] |= json.loads(body) | {"metageneration": str(number)}
        if query.get("alt") == "media":
            return self._send_content(objects[name])
        return self._send(200, objects[name])

    def _check(self, name: str, query: dict[str, str]) -> None:
        generation = self.store.objects.get(name, {}).get("generation", "0")
        if query.get("ifGenerationMatch", generation) != generation:
            raise Refused(412)
        if query.get("ifGenerationNotMatch") == generation:
            raise Refused(304)

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        kind, name = query.get("uploadType"), query.get("name", "")
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary
            about, data = body.split(b"\n\n", 1)[1].split(b"\n--" + boundary[1].encode(), 1)
            body = data.split(b"\n\n", 1)[1].rsplit(b"\n--" + boundary[1].encode(), 1)[0]
            name = json.loads(about)["name"]
        elif kind == "resumable" and "upload_id" not in query:
            number = str(len(self.uploads))
            self.uploads[number] = json.loads(body)["name"], bytearray(), query
            where = f"http://{self.headers['Host']}{self.path}&upload_id={number}"
            return self._send(200, b"", Location=where)
        elif "upload_id" in query:
            name, data, query = self.uploads[query["upload_id"]]
            data += body
            end = self.headers["Content-Range"].rpartition("/")[2]
            if not end.isdecimal() or len(data) < int(end):
                return self._send(308, b"", Range=f"bytes=0-{len(data) - 1}")
            body = bytes(data)
        self.store.before("PUT", name)
        self._check(name, query)
        return self._send(200, self.store.put(name, body))

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names = [n for n in self.store.names(prefix) if n >= query.get("startOffset", "")]
        names = [n for n in names if not query.get("endOffset") or n < query["endOffset"]]
        folders = set()
        if delimiter:
            parts = {n: n[len(prefix) :].partition(delimiter) for n in names}
            folders = {prefix + first + delimiter for first, cut, _ in parts.values() if cut}
            names = [n for n in names if not parts[n][1]]
        start = int(query.get("pageToken", 0))
        end = start + min(_PAGE, int(query.get("maxResults", _PAGE)))
        page: dict[str, Any] = {"items": [_about(self.store.objects[n]) for n in names[start:end]]}
        if start == 0:
            page["prefixes"] = sorted(folders)
        if end < len(names):
            page["nextPageToken"] = str(end)
        self._send(200, page)

    def _send_content(self, found: dict[str, Any]) -> None:
        data = found["data"]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        extra = {"x-goog-generation": found["generation"]}
        if not wanted:
            return self._send(200, data, **extra)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first >= len(data):
            raise Refused(416)
        extra["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, data[first : last + 1], **extra)

    def _send(self, status: int, content: Any, **headers: str) -> None:
        is_bytes = isinstance(content, bytes)
        data = content if is_bytes else json.dumps(_about(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if is_bytes else "application/json")
        for header, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(header, value)
        with contextlib.suppress(BrokenPipeError):  # gcsfs asks twice and takes the first answer
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()


def _about(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "data"}


@contextlib.contextmanager
def serving() -> Iterator[tuple[Store, dict[str, str]]]:
    """A store that is served, and the environment by which a process finds it."""
    store = Store()
    handler = type("Handler", (_Handler,), {"store": store, "uploads": {}})
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://localhost:{server.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        # A search for the kind of bucket over gRPC, which is not served here.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    try:
        yield store, environment
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
