# SPDX-License-Identifier: Apache-2.0
"""Compiled steps kept for later plans: the program's text and what the compiler said, by key.

    <folder>/<key>/record.json    what the worker answered, versions, sizes
                  /text.gz        the scheduled program
                  /buffers.gz, /live_ranges.gz    where its arrays lie, and when, see `dump`
                  /found-*.json   what was made of these, see `analysis`

The key is of all that decides the program: the recipe's part of it, the slice, the compiler's
options, versions, and midjax's own source. Entries are never changed; delete the folder at will.
"""

import functools
import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import midjax
from midjax import files

# Fields of `train` that are no part of the compiled step. Of the data only the number of sources
# and the length of rows are; the mixture decides what is in a row.
_NOT_COMPILED = (
    "run_dir",
    "start",
    "data",
    "train_tokens",
    "max_consecutive_skips",
    "rollback",
    "checkpoint",
    "seed",
    "trackers",
    "device_flops_per_second",
    "compilation_cache",
)
TEXTS = ("text", "buffers", "live_ranges")
# What makes the program, of this package.
_SOURCES = (
    "hardware",
    "model",
    "train",
    "batches/batch.py",
    "plan/program.py",
    "plan/dump.py",
    "plan/worker.py",
)


def folder(asked: str | None) -> pathlib.Path:
    """Where compiled steps are kept: as asked, or in the user's cache."""
    if asked is not None:
        return pathlib.Path(asked).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "midjax" / "plan"


def key(
    config: Mapping[str, Any],
    *,
    topology: str,
    slices: int,
    rows: int,
    options: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """Hex digest of what decides a compiled step.

    Args:
      config: a recipe of `train`, as plain JSON.
      topology, slices: of the chips.
      rows: of a batch.
      options: of the compiler.
      versions: of jax, jaxlib and libtpu.
    """
    compiled = {name: value for name, value in config.items() if name not in _NOT_COMPILED}
    data = config["data"]
    parts = {
        "config": compiled,
        "sources": len(data["sources"]),
        "row_tokens": data["row_tokens"],
        # Microbatches are parts of the largest batch.
        "batch_rows": data["batch_rows"],
        "topology": [topology, slices],
        "rows": rows,
        "options": dict(options),
        "versions": dict(versions),
        "source": _source(),
    }
    return files.sha256(json.dumps(parts, sort_keys=True).encode())[:32]


@functools.cache
def _source() -> str:
    root = pathlib.Path(midjax.__file__).parent
    digest = hashlib.sha256()
    for name in _SOURCES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if path.is_file():
                digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def read(entry: pathlib.Path) -> dict[str, Any] | None:
    """The record of an entry; None where there is none, or it is damaged."""
    try:
        found = files.read_json(entry / "record.json")
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(found, dict) and (
        found.get("outcome") == "refused" or all((entry / f"{name}.gz").is_file() for name in TEXTS)
    )
    return found if whole else None


def write(entry: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes an entry's record, after its text: an entry with a record is whole."""
    files.write_json(entry / "record.json", record)


def write_text(entry: pathlib.Path, name: str, text: str) -> None:
    """Writes one of `TEXTS`, compressed to a tenth."""
    files.write_bytes(entry / f"{name}.gz", gzip.compress(text.encode(), compresslevel=5, mtime=0))


def read_text(entry: pathlib.Path, name: str) -> str:
    """One of `TEXTS`.

    Raises:
      OSError: it is not there, or damaged.
    """
    return gzip.decompress((entry / f"{name}.gz").read_bytes()).decode()
