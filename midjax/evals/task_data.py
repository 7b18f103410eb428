# SPDX-License-Identifier: Apache-2.0
"""The documents of a task, read from the user's disk in the form in which they are public.

    data folder / data.path --find--> files --> records --rows, merge, keep, sample--> Document

Files are JSON lines (also in `.json`), JSON (one list, or one object), Parquet, or a folder that
`datasets` saved; `.gz` and `.zst` are read as they are. Nothing is fetched unless it is asked for.
"""

import collections
import dataclasses
import importlib.util
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from midjax import files
from midjax.corpora import arrow, formats, parquet, reading
from midjax.evals import task as tasks
from midjax.evals import task_parts, template

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet")
_UNUSED = formats.Text(field="text")


class MissingDataError(FileNotFoundError):
    """A data set that is not on the disk; the message says where to get it and where to put it.

    Attributes:
      brief: the same in few words, for a list of them.
    """

    brief = ""

    @classmethod
    def of(cls, note: str, error: "MissingDataError") -> "MissingDataError":
        """The same with a note."""
        found = cls(f"{error} {note}.")
        found.brief = f"{error.brief}; {note[0].lower()}{note[1:]}" if error.brief else ""
        return found

    @classmethod
    def both(cls, first: "MissingDataError", second: "MissingDataError") -> "MissingDataError":
        """Two of one task, said at once."""
        found = cls(f"{first} {second}")
        found.brief = "; ".join(filter(None, (first.brief, second.brief)))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One question, as its authors published it.

    Attributes:
      id: unique within the task and stable between runs.
      subset: of the task's subsets; "" where there are none.
      fields: its record.
    """

    id: str
    subset: str
    fields: Mapping[str, Any]


def read(
    task: tasks.Task,
    folder: str,
    *,
    split: str | None = None,
    subsets: Sequence[str] | None = None,
    sample: task_parts.Sample | None = None,
    online: bool = False,
    left_out: collections.Counter[str] | None = None,
) -> list[Document]:
    """The documents that a task asks, subset by subset.

    Args:
      task: of any kind but a group.
      folder: the data folder.
      split: another than the task's; then `data.sample` is not drawn: it is of the task's split.
      subsets: of these only.
      sample: another part of each subset than the task's; OLMES asks 1,000 of its larger sets,
        Sample(count=1000).
      online: a data set that is not on the disk is fetched by `datasets`, from the hub.
      left_out: counts the documents that the task does not ask: by "data.keep", by "data.sample".

    Raises:
      MissingDataError: there is no such data set.
      ValueError: a record is damaged, or the task's expressions do not fit it.
    """
    unknown = sorted(set(subsets or ()) - set(task.subsets))
    if unknown:
        raise ValueError(f"{task.name} has no subset {unknown[0]!r}; it has {task.subsets}.")
    split_name = split or _data(task).split
    counts = collections.Counter[str]() if left_out is None else left_out
    source = _Source(
        task=task, folder=folder.rstrip("/"), split=split_name, online=online, left_out=counts
    )
    if sample is None and split_name == _data(task).split:
        sample = _data(task).sample
    found: list[Document] = []
    for subset in (task.subsets if subsets is None else tuple(subsets)) or ("",):
        part = source.documents(subset)
        if not part:
            raise ValueError(
                f"The task {task.name} has no document of {subset or 'its split'!r}: does "
                "data.keep or data.subset fit the data?"
            )
        drawn = sampled(part, sample)
        counts["data.sample"] += len(part) - len(drawn)
        found += drawn
    return found


def text_file(task: tasks.Task, folder: str, path: str, subset: str) -> str:
    """A text file of the data folder.

    Raises:
      MissingDataError: there is none.
    """
    name = files.path(folder) / _filled(path, "", subset)
    if not name.exists():
        raise _missing(task, str(name))
    return name.read_text(encoding="utf-8")


def sampled(documents: list[Document], sample: task_parts.Sample | None) -> list[Document]:
    """The part of the documents that a `Sample` is."""
    if sample is None:
        return documents
    numbers = list(range(len(documents)))
    if sample.count < len(numbers):
        drawn = random.Random(sample.seed).sample(numbers, sample.count)
    else:
        drawn = numbers
    if sample.keep == "rest":
        left = set(drawn)
        drawn = [number for number in numbers if number not in left]
    return [documents[number] for number in drawn]


def _data(task: tasks.Task) -> task_parts.Data:
    if task.data is None:
        raise ValueError(f"{task.name} is a group: its members {task.members} have the data.")
    return task.data


def _filled(text: str, split: str, subset: str) -> str:
    return text.replace("{split}", split).replace("{subset}", subset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """One split of a task's data; files with several subsets are read once."""

    task: tasks.Task
    folder: str
    split: str
    left_out: collections.Counter[str]
    online: bool = False
    read: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def documents(self, subset: str) -> list[Document]:
        """Of one subset, before `sample`."""
        data = _data(self.task)
        records = self.records((data.path, *data.also), subset)
        if data.rows:
            records = [row for one in records for row in _rows(one, data, self.task.name)]
        if data.join:
            records = _joined(records, self.records((data.join,), subset), data)
        if data.merge:
            records = _merged(records, data.merge)
        return list(self._chosen(records, subset))

    def records(self, paths: Sequence[str], subset: str) -> list[dict[str, Any]]:
        """What the first of the paths that is there holds."""
        stems = [f"{self.folder}/{_filled(path, self.split, subset)}" for path in paths]
        for stem in stems:
            if stem in self.read:
                return self.read[stem]
            if names := find(stem):
                self.read[stem] = [record for name in names for record in _read(name)]
                return self.read[stem]
        if not self.online or paths[0] == _data(self.task).join:
            raise _missing(self.task, stems[0])
        return list(_fetched(self.task, self.split, subset, stems[0]))

    def _chosen(self, records: list[dict[str, Any]], subset: str) -> Iterator[Document]:
        data, name = _data(self.task), self.task.name
        ask = {
            key: template.Expression(getattr(data, key), f"{name}: data.{key}")
            for key in ("keep", "id", "subset")
            if getattr(data, key)
        }
        seen = set()
        for number, record in enumerate(records):
            if subset and "subset" in ask and str(ask["subset"](record)) != subset:
                continue
            if "keep" in ask and not ask["keep"](record):
                self.left_out["data.keep"] += 1
                continue
            id_ = str(ask["id"](record)) if "id" in ask else str(number)
            key = f"{subset}/{id_}" if subset else id_
            if key in seen:
                raise ValueError(
                    f"Two documents of {name} have the id {key!r}: data.id must tell them apart."
                )
            seen.add(key)
            yield Document(id=key, subset=subset, fields=record)


def _rows(record: Mapping[str, Any], data: task_parts.Data, task: str) -> list[dict[str, Any]]:
    """The records that a record holds in lists within it, each with what stands around it."""
    if data.rows_optional and data.rows.partition(".")[0] not in record:
        return [dict(record)]
    found = [dict(record)]
    for key in data.rows.split("."):
        inner = []
        for one in found:
            if key not in one:
                raise ValueError(
                    f"{task}: data.rows is {data.rows!r}, and a record has {sorted(one)} only."
                )
            rows = one[key] if isinstance(one[key], list | tuple) else [one[key]]
            if not all(isinstance(row, Mapping) for row in rows):
                raise ValueError(f"{task}: data.rows is {data.rows!r}, which holds no records.")
            inner += [{**one, **row, "row": number} for number, row in enumerate(rows)]
        found = inner
    return found


def _joined(
    records: list[dict[str, Any]], others: list[dict[str, Any]], data: task_parts.Data
) -> list[dict[str, Any]]:
    by_id = {other.get("id"): other for other in others}
    for record in records:
        if record.get("id") not in by_id:
            raise ValueError(f"{data.join} has no record with the id {record.get('id')!r}.")
    return [{**record, "joined": by_id[record["id"]]} for record in records]


def _merged(records: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        if field not in record:
            raise ValueError(f"data.merge is {field!r}, and a record has {sorted(record)} only.")
        groups.setdefault(record[field], []).append(record)
    return [{**group[0], "merged": group} for group in groups.values()]


def find(stem: str) -> list[str]:
    """Files, or one folder that `datasets` saved, that a path without its ending stands for;
    sorted, empty if there are none."""
    path = files.path(stem)
    if path.is_dir():
        if (path / "state.json").exists():
            return [stem]
        patterns = [f"{stem}/*{ending}" for ending in _ENDINGS]
    elif path.exists():
        return [stem]
    else:
        patterns = [stem + ending for ending in _ENDINGS]
        patterns += [f"{stem}-[0-9]*-of-[0-9]*{ending}" for ending in _ENDINGS]
        if any(character in stem for character in "*?["):
            patterns.insert(0, stem)
    for pattern in patterns:
        try:
            return files.match(pattern)
        except FileNotFoundError:
            continue
    return []


class _Table(parquet.Parquet):
    """All columns, whatever they are: no text is made of them here."""

    def columns_of(self, name: str, there: Any, wanted: Any) -> list[str]:
        return list(there)


class _Folder(arrow.HuggingFaceDisk):
    """As `_Table`."""

    def columns_of(self, name: str, there: Any, wanted: Any) -> list[str]:
        return list(there)


def _read(name: str) -> Iterator[dict[str, Any]]:
    common: dict[str, Any] = {"format": _UNUSED, "id_field": None, "max_bad_records": 0}
    reader: reading.Reader
    if files.path(name).is_dir():
        reader = _Folder(path=name, split=None, columns=None, **common)
    elif name.endswith(".parquet"):
        reader = _Table(path=name, columns=None, **common)
    else:
        yield from _read_json(name)
        return
    for unit in reader.units():
        for found in reader.records(unit, lambda position: None):
            yield dict(found.record or {})


def _read_json(name: str) -> Iterator[dict[str, Any]]:
    """JSON lines; or one list of objects, or one object, over any number of lines."""
    lines = files.lines(name)
    held: list[bytes] = []
    for line in lines:
        if line.data is None:
            raise ValueError(f"{name}, line {line.number}: {line.reason}.")
        if not line.data.strip():
            continue
        record, reason = reading.parse_object(line.data)
        if record is None and not held and line.number == 1:
            held.append(line.data)  # not a line of JSON lines: the beginning of one value
            held += [rest.data for rest in lines if rest.data is not None]
            yield from _whole(name, b"\n".join(held))
            return
        if record is None:
            raise ValueError(f"{name}, line {line.number}: {reason}.")
        yield record


def _whole(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name} is neither JSON nor JSON lines: {error}.") from error
    records = value if isinstance(value, list) else [value]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{name} holds something else than objects.")
    yield from records


def _fetched(task: tasks.Task, split: str, subset: str, stem: str) -> Iterator[dict[str, Any]]:
    data = _data(task)
    if not data.hub:
        raise _missing(task, stem, "they are not on the Hugging Face hub, and ")
    if importlib.util.find_spec("datasets") is None:
        raise MissingDataError(
            f"{task.name}: to fetch {data.hub}, install datasets: pip install datasets."
        )
    import datasets  # heavy, and only for who asks for it

    config = _filled(data.config, split, subset) or None
    try:
        found = datasets.load_dataset(data.hub, config, split=split)
    # Not reached, not there, without such a split or configuration, or only by code of its own.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = str(error).partition("\n")[0][:200]
        why = f"{data.hub} was not fetched ({type(error).__name__}: {said}), and "
        raise _missing(task, stem, why) from error
    yield from found


def _missing(task: tasks.Task, stem: str, why: str = "") -> MissingDataError:
    data = _data(task)
    where = []
    if data.hub:
        named = data.config.replace("{subset}", "of the subset's name")
        config = f", configuration {named}" if named else ""
        where.append(f"the Hugging Face data set {data.hub}{config}")
    if data.get:
        where.append(data.get)
    origin = f"{' or '.join(where) or 'its authors'}, licence {data.licence}"
    error = MissingDataError(
        f"The task {task.name} has no data: {why}there is no {stem} (or "
        f"{', '.join(_ENDINGS)} of that name, in parts or in a folder). "
        f"Get it from {origin}, and put it there."
    )
    error.brief = f"{task.name}: {why}{'there is no ' if why else ''}{stem}, from {origin}"
    return error
