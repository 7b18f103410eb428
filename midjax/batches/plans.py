# SPDX-License-Identifier: Apache-2.0
"""Packing plans, made once and kept beside the tokens that they are of.

<token folder>/plans/<key>/<array>.npy    mapped into memory, not read
<token folder>/plans/<key>/plan.json      written last: arrays without it are not looked at

The key is a hash of all that a plan depends on: the tokens, the packing, and `FORMAT`. So a plan
that is there is the right one, and whoever writes it writes the same bytes.
"""

import dataclasses
import json
import os
import uuid
from typing import Any

import numpy as np
from etils import epath

from midjax import files, log, units
from midjax.batches import pack, shards

# Of the files and of the algorithms: plans of another number are made anew.
FORMAT = 1
_FOLDER, _FACTS = "plans", "plan.json"
# More documents than this take a while, and the user is told what is being done.
_MANY = 1_000_000

Made = pack.Plan | pack.Stream


def of(source: shards.TokenSource, packing: pack.Packing) -> Made:
    """The plan of a token folder: the one that is kept, or a new one, which is then kept."""
    facts = {
        "format": FORMAT,
        "tokens": source.manifest["content_hash"],
        "documents": len(source),
        "packing": dataclasses.asdict(packing),
    }
    key = files.sha256(json.dumps(facts, sort_keys=True).encode())[:24]
    place = files.path(source.folder) / _FOLDER / key
    found = _read(place)
    if found is not None:
        return found
    if len(source) >= _MANY:
        log.say(f"{source.folder}: planning rows of {units.human(len(source))} documents")
    made = make(source.lengths, packing)
    try:
        _remove_others(place.parent, source.manifest["content_hash"])
        _write(place, made, facts)
    except OSError as error:
        log.say(
            f"{source.folder} cannot be written to ({error.strerror or error}): its packing plan "
            "is not kept and will be made anew at every start"
        )
        return made
    return _read(place) or made


def make(lengths: np.ndarray, packing: pack.Packing) -> Made:
    """The plan of documents of these lengths; of `concat` without its pieces."""
    return (pack.stream if packing.policy == "concat" else pack.plan)(lengths, packing)


def _write(place: epath.Path, made: Made, facts: dict[str, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    arrays = {name: x for name, x in values.items() if isinstance(x, np.ndarray)}
    sizes = {name: _write_array(place / f"{name}.npy", array) for name, array in arrays.items()}
    rest = {name: x for name, x in values.items() if name not in arrays}
    kind = type(made).__name__
    files.write_json(place / _FACTS, facts | {"kind": kind, "sizes": sizes, "plan": rest})


def _write_array(place: epath.Path, array: np.ndarray) -> int:
    """Writes a whole array or nothing; returns the size of the file."""
    if "://" in os.fspath(place):  # an object appears when it is whole
        with place.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            return file.tell()
    temporary = place.parent / f".{place.name}.{uuid.uuid4().hex}.tmp"
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())  # on the disk before plan.json says that it is there
        size = file.tell()
    temporary.replace(place)
    return size


def _read(place: epath.Path) -> Made | None:
    """The plan that is kept there, or None where there is none that is whole."""
    try:
        facts = files.read_json(place / _FACTS)
        arrays = {
            name: _read_array(place / f"{name}.npy", size) for name, size in facts["sizes"].items()
        }
    except (OSError, ValueError):  # not there, cut off, of no size that plan.json says
        return None
    if facts["kind"] == "Stream":
        return pack.Stream(**facts["plan"] | arrays)
    return pack.Plan(**facts["plan"] | arrays)


def _read_array(place: epath.Path, size: int) -> np.ndarray:
    """Mapped where it is local.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not of this size, or no array.
    """
    if place.stat().length != size:
        raise ValueError(f"{place} has {place.stat().length} bytes and should have {size}.")
    if "://" in os.fspath(place):
        with place.open("rb") as file:
            return np.load(file, allow_pickle=False)
    array = np.load(place, mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray)  # np.memmap's own slices cost several times as much


def _remove_others(plans: epath.Path, content_hash: str) -> None:
    """Deletes plans of tokens that are no longer there. Who has one mapped keeps it."""
    if not plans.exists():
        return
    for place in plans.iterdir():
        try:
            tokens = files.read_json(place / _FACTS)["tokens"]
        except FileNotFoundError:  # it is being written
            continue
        except ValueError:
            tokens = None
        if tokens != content_hash:
            place.rmtree(missing_ok=True)
