# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Google Cloud Storage, in memory, below the layer that reads `gs://`."""

import fsspec.implementations.memory
from etils.epath import backend, gpath


class Bucket(fsspec.implementations.memory.MemoryFileSystem):
    """A stand-in for Google Cloud Storage."""

    protocol = ("gcs", "gs")
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs:/"))

    def glob(self, path, **options):  # as gcsfs names what it finds
        return [name.removeprefix("/") for name in super().glob(path, **options)]


def install(monkeypatch) -> Bucket:
    """An empty bucket `gs://b`, for one test."""
    bucket = Bucket()
    bucket.store.clear()
    bucket.makedirs("/b/dir", exist_ok=True)
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda *_: bucket)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    return bucket
