# SPDX-License-Identifier: Apache-2.0
"""The verb `tokenize`: sources -> one token folder each.

source --units--> processes: read, encode, write parts (workers, parts) --finish--> <output>/<name>

A run that was killed goes on where it stopped when the same command is run again, and what it
leaves is the same, byte for byte, as if it had never been killed, with any number of processes.
A finished folder is replaced only once the new one is whole.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from midjax import files, log, units
from midjax.batches import lint, parts, seqio, shards, vocabulary, workers
from midjax.corpora import chat, reading, sources
from midjax.corpora import seqio as seqio_lib

_LOCK = ".tokenize.lock"
# In a finished folder: where its tokens are made anew. They take its place when they are whole, so
# that a run that fails loses nothing.
_NEW = ".new"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Tokenizes each source into `output/<name>`.

    Attributes:
      sources: name -> where its documents are. A seqio Mixture stands for its Tasks: they become
        `name/task`, and `output/name/mixture.gin` has their rates as weights.
      tokenizer: of the model that will read the tokens. None where all sources are seqio's, which
        bring their own.
      output: folder of token folders.
      shard_tokens: tokens per shard file.
      processes: that read and tokenize at once, with as many threads together as there are
        processors; None is one for four processors.
    """

    sources: Mapping[str, sources.Source]
    tokenizer: vocabulary.Tokenizer | None
    output: str
    shard_tokens: int
    processes: int | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("Tokenize.sources is empty. Name at least one source.")
        for field in ("shard_tokens", "processes"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"Tokenize.{field} must be 1 or more, got {value}.")


def run(config: Tokenize) -> dict[str, dict[str, Any]]:
    """Tokenizes every source; one that is there from the same input is left as it is.

    Returns the manifests by source.

    Raises:
      FileNotFoundError: no tokenizer, or no file of a source.
      ValueError: what is given does not fit; `output` holds tokens of another tokenizer, or another
        process writes there.
    """
    made = {
        name: _Source(config, name, reader)
        for name, reader in sorted(seqio.expand(config.sources).items())
    }
    _refuse_different({name: source.tokenizer_hash for name, source in made.items()})
    with _only_writer(config.output) as lock:
        _refuse_other_tokenizers(config.output, made)
        manifests = {name: source.finished() for name, source in made.items()}
        todo = [made[name] for name, manifest in manifests.items() if manifest is None]
        for source in todo:
            source.prepare()
        manifests |= _make(config, todo, lock)
        for name, given in config.sources.items():
            if isinstance(given, seqio_lib.SeqioMixture):
                log.say(f"weights of {name}: {seqio.write_mixture(config.output, name, given)}")
    return {name: manifest for name, manifest in manifests.items() if manifest is not None}


def _make(config: Tokenize, todo: list["_Source"], lock: str | None) -> dict[str, Any]:
    """Tokenizes sources that are not finished; returns their manifests."""
    by_name = {source.name: source for source in todo}
    jobs = [job for source in todo for job in source.jobs()]
    total_bytes = max(1, sum(job.unit.size_bytes for job in jobs))
    read = 0
    manifests = {}
    if not jobs:
        return {}
    with log.Progress("tokenize", None) as progress:

        def advance(tokens: int, read_bytes: int) -> None:
            nonlocal read
            read += read_bytes
            progress.advance(tokens, share=min(1.0, read / total_bytes))

        for job, record in workers.run(jobs, config.processes, lock, advance):
            source = by_name[job.source]
            if source.take(job.number, record):
                manifests[source.name] = source.finish()
    return manifests


class _Source:
    """One source of a run."""

    def __init__(self, config: Tokenize, name: str, reader: sources.Reader) -> None:
        self.name, self._reader = name, reader
        self.folder = self._work = str(files.path(config.output) / name)
        self._shard_tokens = config.shard_tokens
        self._tokenizer: workers.Tokenizer
        if isinstance(reader, seqio_lib.SeqioTask):
            self._tokenizer = seqio.tokenizer_of(reader)
        elif config.tokenizer is not None:
            self._tokenizer = config.tokenizer
        else:
            raise ValueError(f"Tokenize.tokenizer is None, and source {name!r} needs one.")
        encoder = workers.opened(self._tokenizer)
        self.tokenizer_hash = encoder.facts["tokenizer_hash"]
        self._special_ids = {name: key for key, name in encoder.special_ids.items()}
        self._units: list[reading.Unit] = reader.units()
        _refuse_own_input(name, self.folder, self._units)
        self._records: dict[int, dict[str, Any]] = {}
        self._tally = reading.Tally()
        # All that the tokens depend on, besides the input.
        self._wanted = {**encoder.facts, "source": name, "reader": _described(reader)}
        if isinstance(getattr(reader, "format", None), chat.Chat):
            template = encoder.tokenizer_facts.chat_template or ""
            self._wanted["chat_template"] = files.sha256(template.encode())

    def finished(self) -> dict[str, Any] | None:
        """The manifest of a folder that this run would make as it is; says where it would not."""
        new = files.path(self.folder) / _NEW
        changed = self._changed(self.folder)
        if changed != [] and self._changed(str(new)) == []:  # stopped just before the end
            parts.move(str(new), self.folder)
            changed = []
        if changed is None:
            return None
        if changed:
            log.say(f"tokenize {self.name}: made anew, as this changed: {', '.join(changed)}")
            return None
        shards.verify(self.folder)
        manifest = files.read_json(files.path(self.folder) / shards.MANIFEST)
        parts.tidy(self.folder, parts.shard_files(manifest))
        if new.exists():  # of a change that was undone
            new.rmtree()
        log.say(f"tokenize {self.name}: {self.folder} is up to date, kept")
        return manifest

    def _changed(self, folder: str) -> list[str] | None:
        """What of a finished folder is not as this run would have it; None of no such folder."""
        place = files.path(folder) / shards.MANIFEST
        if not place.exists():
            return None
        manifest = files.read_json(place)
        changed = [key for key in self._wanted if manifest.get(key) != self._wanted[key]]
        if manifest.get("format") != parts.FORMAT:
            changed.append("format")
        inputs = manifest.get("inputs", {})
        if not changed and inputs != {unit.key: unit.fingerprint() for unit in self._units}:
            changed.append("input")
        return changed

    def prepare(self) -> None:
        """Makes room: keeps the parts of an unfinished run, unless it had other settings."""
        new = files.path(self.folder) / _NEW
        if (files.path(self.folder) / shards.MANIFEST).exists():
            self._work = str(new)
        elif new.exists():
            new.rmtree()
        root = files.path(self._work)
        root.mkdir(parents=True, exist_ok=True)
        if (root / shards.MANIFEST).exists():
            parts.clear(self._work)
            return
        key = workers.settings_key(self._wanted, self._shard_tokens)
        if not all(found.startswith(key) for found in parts.keys(self._work)):
            log.say(
                f"tokenize {self.name}: begun anew: an unfinished run in {self.folder} had another "
                "tokenizer, reader or shard_tokens"
            )
            parts.clear(self._work)

    def jobs(self) -> Iterator[workers.Job]:
        """What is to do, in order."""
        for number, unit in enumerate(self._units):
            yield workers.Job(
                source=self.name,
                folder=self._work,
                reader=self._reader,
                unit=unit,
                number=number,
                tokenizer=self._tokenizer,
                depends=self._wanted,
                shard_tokens=self._shard_tokens,
            )

    def take(self, number: int, record: dict[str, Any]) -> bool:
        """Notes a finished unit; returns whether it was the last.

        Raises:
          ValueError: the units so far dropped more than the source may.
        """
        self._records[number] = record
        self._tally = reading.Tally()
        for key in sorted(self._records):
            self._tally.add(reading.Tally.from_json(self._records[key]["tally"]))
        reading.check_budget(self.name, self._tally, self._reader.max_bad_records)
        return len(self._records) == len(self._units)

    def finish(self) -> dict[str, Any]:
        """Makes the token folder of the units; returns its manifest."""
        if not self._tally.documents:  # before a manifest is written
            raise ValueError(
                f"Source {self.name!r} gave no document; dropped: {dict(self._tally.dropped)}. "
                "Name other files, or drop the source."
            )
        records = [self._records[number] for number in range(len(self._units))]
        counts = [record["parts"] for record in records]
        seen = lint.Counts()
        for part in parts.part_records(self._work, counts):
            seen.add(part["notes"])
        dtype = parts.token_dtype(self._wanted["vocab_size"])
        facts = self._wanted | {
            "dtype": dtype.str,
            "inputs": {record["unit"]: record["fingerprint"] for record in records},
            "dropped": dict(sorted(self._tally.dropped.items())),
            "first_dropped": dict(sorted(self._tally.examples.items())),
            "lint": seen.to_json(),
            "special_ids": {name: self._special_ids[name] for name in sorted(seen.special)},
        }
        manifest = parts.finish(self._work, counts, facts)
        if self._work != self.folder:
            parts.move(self._work, self.folder)
        self._tell(manifest, sum(record["kept"] for record in records))
        return manifest

    def _tell(self, manifest: dict[str, Any], kept: int) -> None:
        drops = "".join(f", {count} dropped: {why}" for why, count in manifest["dropped"].items())
        kept_text = f", {kept} of them from an earlier run" if kept else ""
        rate = manifest["text_bytes"] / max(manifest["tokens"], 1)
        log.say(
            f"tokenize {self.name}: {manifest['documents']} documents{kept_text}, "
            f"{units.human(manifest['tokens'])} tokens, {rate:.2f} bytes per token{drops}"
        )
        if repeated := manifest["repeated_ids"]:
            log.say(
                f"tokenize {self.name}: warning: {repeated} documents have the id of another one: "
                "ids.jsonl does not tell them apart. Name a unique id_field, or None."
            )
        for warning in lint.warnings(manifest["lint"], manifest["documents"]):
            log.say(f"tokenize {self.name}: warning: {warning}")


def _described(value: Any) -> Any:
    """A reader as plain JSON. Its budget of bad records is left out: it changes no token."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _described(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name != "max_bad_records"
        }
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {key: _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    return json.loads(json.dumps(value))


def _refuse_own_input(name: str, folder: str, units: list[reading.Unit]) -> None:
    """A source is not written into the folder that it is read from: its next run would read it."""
    own = os.path.realpath(folder)
    for unit in units:
        for file, _, _ in unit.pieces:
            if os.path.realpath(os.path.dirname(str(files.path(file)))) == own:
                raise ValueError(
                    f"Source {name!r} reads {file}, and its tokens would be written into the same "
                    "folder. Give Tokenize.output another one, or the source another name."
                )


def _refuse_different(hashes: Mapping[str, str]) -> None:
    """Sources of one run are of one tokenizer."""
    if len(set(hashes.values())) > 1:
        listed = ", ".join(f"{name}: {digest[:12]}" for name, digest in hashes.items())
        raise ValueError(
            f"The sources have different tokenizers (sha256 of each, {listed}): no run could mix "
            "them. Give Tokenize.tokenizer the vocabulary of the seqio Tasks, or tokenize them "
            "into a folder of their own."
        )


def _refuse_other_tokenizers(output: str, made: Mapping[str, "_Source"]) -> None:
    """Token folders that lie together are of one tokenizer."""
    root = files.path(output)
    mine = {source.folder for source in made.values()}
    wanted = next(iter(made.values())).tokenizer_hash
    # Names of sources have one slash at most, by custom; object stores do not look deeper at once.
    depths = (f"*/{shards.MANIFEST}", f"*/*/{shards.MANIFEST}")
    for place in sorted(place for depth in depths for place in root.glob(depth)):
        if str(place.parent) in mine or place.parent.name == _NEW:
            continue
        found = files.read_json(place).get("tokenizer_hash")
        if found not in (None, wanted):
            raise ValueError(
                f"{place.parent} holds tokens of another tokenizer (sha256 {found[:12]}) than "
                f"this run's (sha256 {wanted[:12]}): no run could mix them. Give Tokenize.output "
                "another folder, or delete that one."
            )


@contextlib.contextmanager
def _only_writer(output: str) -> Iterator[str | None]:
    """Refuses a second process that writes to a folder; object stores have no such lock.

    Yields the lock file.
    """
    root = files.path(output)
    root.mkdir(parents=True, exist_ok=True)
    if "://" in output:
        yield None
        return
    lock = str(root / _LOCK)
    try:
        held = workers.own(lock)
    except BlockingIOError:
        raise ValueError(
            f"Another process is writing to {output}. Wait for it, or give Tokenize.output "
            "another folder."
        ) from None
    with held:
        yield lock
