# SPDX-License-Identifier: Apache-2.0
"""Google Cloud Storage on this machine: objects in memory, no folders, behind its JSON interface.

TensorStore writes and reads through the server, as it does with the real one. So does gcsfs, where
it is installed; where it is not, `Files` stands below `gs://` paths, on the same objects.
"""

import collections
import contextlib
import functools
import http.server
import importlib.util
import io
import json
import os
import re
import threading
import types
import urllib.parse

import fsspec
from etils.epath import backend, gpath

from midjax import storage

HAS_GCSFS = importlib.util.find_spec("gcsfs") is not None


class Objects:
    """Name -> (generation, content).

    Attributes:
      fails: asked before each change and each reading, with the HTTP method and the name: whether
        it is refused. (Failures that may pass are tried again for minutes, by all libraries.)
      writes: how often each object was written.
    """

    def __init__(self):
        self.stored, self.generation, self.lock = {}, 0, threading.RLock()
        self.fails, self.writes = lambda method, name: False, collections.Counter()

    def clear(self):
        with self.lock:
            self.stored.clear()
            self.writes.clear()
            self.fails = lambda method, name: False

    def put(self, name, data):
        with self.lock:
            self.generation += 1
            self.stored[name] = (self.generation, bytes(data))
            self.writes[name] += 1

    def text(self, name):
        return self.stored[name][1].decode()

    def names(self, prefix=""):
        with self.lock:
            return sorted(name for name in self.stored if name.startswith(prefix))

    def below(self, prefix, delimiter="/"):
        """(objects, prefixes) of a listing."""
        found, folders = [], set()
        for name in self.names(prefix):
            head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if mark:
                folders.add(f"{prefix}{head}{delimiter}")
            else:
                found.append(name)
        return found, sorted(folders)


OBJECTS = Objects()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status=200):
        self._answer(status, json.dumps(value).encode())

    def _meta(self, name):
        generation, data = OBJECTS.stored[name]
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(data)),
            "generation": str(generation), "metageneration": "1", "storageClass": "STANDARD",
            "contentType": "application/octet-stream", "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z", "etag": str(generation),
        }  # fmt: skip

    def _any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        upload = re.fullmatch(r"/upload/storage/v1/b/bucket/o", url.path)
        single = re.fullmatch(r"(?:/download)?/storage/v1/b/bucket/o/([^/]+)", url.path)
        copied = re.fullmatch(
            r"/storage/v1/b/bucket/o/([^/]+)/(rewriteTo/b/bucket|moveTo)/o/([^/]+)", url.path
        )
        with OBJECTS.lock:
            named = single or copied
            name = query.get("name") or (urllib.parse.unquote(named[1]) if named else "")
            if OBJECTS.fails(self.command, name):
                self._json({"error": {"code": 403, "message": "PERMISSION_DENIED"}}, 403)
            elif upload:
                self._upload(query, body)
            elif copied:
                source, target = (urllib.parse.unquote(copied[i]) for i in (1, 3))
                if source not in OBJECTS.stored:
                    return self._json({"error": {"code": 404, "message": f"no {source}"}}, 404)
                OBJECTS.put(target, OBJECTS.stored[source][1])
                if copied[2] == "moveTo":
                    del OBJECTS.stored[source]
                self._json({"done": True, "resource": self._meta(target)})
            elif url.path == "/storage/v1/b/bucket/o":
                self._list(query)
            elif url.path == "/storage/v1/b/bucket":
                self._json(
                    {"kind": "storage#bucket", "name": "bucket", "id": "bucket", "location": "US"}
                )
            elif single:
                self._object(name, query)
            else:
                self._json({"error": {"code": 404, "message": "no such path"}}, 404)
            return None

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _any

    def _list(self, query):
        found, folders = OBJECTS.below(query.get("prefix", ""), query.get("delimiter", ""))
        start, stop = query.get("startOffset", ""), query.get("endOffset")
        found = [n for n in found if n >= start and (stop is None or n < stop)]
        items = [self._meta(name) for name in found]
        self._json({"kind": "storage#objects", "items": items, "prefixes": folders})

    def _wrong(self, name, query):
        """The status where a condition on the generation does not hold."""
        now = OBJECTS.stored.get(name, (0, b""))[0]
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            return 412
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now:
            return 304
        return None

    def _upload(self, query, body):
        name, kind = query.get("name"), query.get("uploadType")
        if kind == "multipart":
            mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            meta, data = body.split(b"--" + mark)[1:3]
            name = json.loads(
                meta.split(b"\n\n" if b"\r\n\r\n" not in meta else b"\r\n\r\n", 1)[1]
            )["name"]
            body = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1]
            body = body[: -2 if body.endswith(b"\r\n") else -1 if body.endswith(b"\n") else None]
        elif kind == "resumable":
            name = name or json.loads(body)["name"]
            if "upload_id" not in query:
                place = (
                    f"{url()}/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id=1&name="
                )
                return self._answer(200, Location=place + urllib.parse.quote(name, safe=""))
            _PARTS[name] = _PARTS.get(name, b"") + body
            if self.headers.get("Content-Range", "/").endswith("/*"):
                return self._answer(308, Range=f"bytes=0-{len(_PARTS[name]) - 1}")
            body = _PARTS.pop(name)
        if status := self._wrong(name, query):
            return self._json({"error": {"code": status, "message": "condition"}}, status)
        OBJECTS.put(name, body)
        return self._json(self._meta(name))

    def _object(self, name, query):
        if status := self._wrong(name, query):
            return self._answer(status)
        if name not in OBJECTS.stored:
            return self._json({"error": {"code": 404, "message": f"No such object: {name}"}}, 404)
        if self.command == "DELETE":
            del OBJECTS.stored[name]
            return self._answer(204)
        if query.get("alt") != "media":
            return self._json(self._meta(name))
        generation, data = OBJECTS.stored[name]
        headers = {"x_goog_generation": generation, "x_goog_stored_content_length": len(data)}
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            total = len(data)
            begin = int(asked[1]) if asked[1] else total - int(asked[2])
            end = min(int(asked[2]) + 1, total) if asked[1] and asked[2] else total
            if begin >= total:
                return self._answer(416)
            headers["Content_Range"] = f"bytes {begin}-{end - 1}/{total}"
            return self._answer(206, data[begin:end], "application/octet-stream", **headers)
        return self._answer(200, data, "application/octet-stream", **headers)


_PARTS: dict[str, bytes] = {}


@functools.cache
def url() -> str:
    """Where it listens. One server for the process, as TensorStore asks for the place once."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.handle_error = lambda *_: None  # a client that went away
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


class Files(fsspec.AbstractFileSystem):
    """The objects, where gcsfs is not installed: a folder is there while an object is below it."""

    protocol = ("gcs", "gs")
    cachable = False

    def _name(self, path):
        return self._strip_protocol(str(path)).removeprefix("bucket").strip("/")

    def _check(self, method, path):
        if OBJECTS.fails(method, self._name(path)):
            raise OSError(f"Forbidden: {path}")

    def info(self, path, **_):
        self._check("GET", path)
        name = self._name(path)
        if name in OBJECTS.stored:
            return {"name": f"bucket/{name}", "type": "file", "size": len(OBJECTS.stored[name][1])}
        if not name or OBJECTS.names(f"{name}/"):
            return {"name": f"bucket/{name}".rstrip("/"), "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def exists(self, path, **_):
        with contextlib.suppress(FileNotFoundError):
            return bool(self.info(path))
        return False

    def ls(self, path, detail=True, **_):
        own = self.info(path)
        found = [own]
        if own["type"] == "directory":
            name = self._name(path)
            below = OBJECTS.below(f"{name}/" if name else "")
            found = [self.info(f"bucket/{each.rstrip('/')}") for each in below[0] + below[1]]
        return found if detail else [each["name"] for each in found]

    listdir = ls

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            if self.info(path)["type"] == "directory":
                raise FileNotFoundError(path)
            return io.BytesIO(OBJECTS.stored[self._name(path)][1])
        assert mode == "wb", f"a bucket has no mode {mode!r}"
        return _Writing(self, path)

    def mkdir(self, *_, **__):
        pass

    def makedirs(self, *_, **__):
        pass

    def rm_file(self, path):
        self._check("DELETE", path)
        if OBJECTS.stored.pop(self._name(path), None) is None:
            raise FileNotFoundError(path)

    def rm(self, path, recursive=False, **_):
        name = self._name(path)
        found = OBJECTS.names(f"{name}/") if recursive else []
        for each in [*found, *([name] if name in OBJECTS.stored or not found else [])]:
            self.rm_file(f"bucket/{each}")

    def cp_file(self, path1, path2, **_):
        self._check("POST", path2)
        if not self.isdir(path1):
            OBJECTS.put(self._name(path2), OBJECTS.stored[self._name(path1)][1])


class _Writing(io.BytesIO):
    """An object that appears when it is closed."""

    def __init__(self, owner, path):
        super().__init__()
        self._owner, self._path = owner, path

    def close(self):
        if not self.closed:
            self._owner._check("POST", self._path)
            OBJECTS.put(self._owner._name(self._path), self.getvalue())
        super().close()


_ENVIRONMENT = {
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    "EPATH_USE_TF": "false",
}


def install(monkeypatch) -> Objects:
    """An empty bucket `gs://bucket`, for one test."""
    OBJECTS.clear()
    reinstall(monkeypatch)
    return OBJECTS


def reinstall(monkeypatch) -> None:
    """The bucket as it is."""
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    # These stay: TensorStore and gcsfs ask for the place once.
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = os.environ["STORAGE_EMULATOR_HOST"] = url()
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    if not HAS_GCSFS:
        from orbax.checkpoint._src.path import gcs_utils

        files = Files()
        monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda *_: files)
        bucket = types.SimpleNamespace(hierarchical_namespace_enabled=False)
        monkeypatch.setattr(gcs_utils, "get_bucket", lambda _: bucket)
        monkeypatch.setattr(storage, "_LIBRARY", "json")
