# SPDX-License-Identifier: Apache-2.0
"""seqio Tasks and Mixtures: their preprocessors and vocabularies make the tokens.

Importing seqio imports TensorFlow, which takes 15 to 50 s: only where such a source is read.
"""

import dataclasses
import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from midjax import files, types
from midjax.corpora import formats, reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqioTask:
    """One registered Task, tokenized by itself.

    A document is what the preprocessors made of an example: the feature `targets`, after `inputs`
    where there are some; then only targets bear loss, as with seqio's PrefixLMFeatureConverter.
    Padding and BOS are not added; EOS is where the preprocessors put it.

    Attributes:
      module: importable Python module that registers the Task: `mypackage.tasks`.
      task: its name.
      split: its split.
      sequence_length: for preprocessors that ask for it (span corruption); seqio cuts each feature
        to it. None cuts nothing.
      seed: of stochastic preprocessors.
      max_bad_records: examples without tokens that are counted and skipped before it is an error.
    """

    module: str
    task: str
    split: str
    sequence_length: Mapping[str, int] | None = None
    seed: int = 0
    max_bad_records: int = 0
    tokenized: ClassVar[bool] = True

    def units(self) -> list[reading.Unit]:
        """Shards of the Task's source; one unit where it has none.

        A unit's fingerprint covers the source's files, if it reads files, and the module's text.

        Raises:
          ValueError: no such module, task or split.
        """
        task = self._task()
        module = inspect.getsourcefile(importlib.import_module(self.module))
        code = [] if module is None else [(module, 0, None)]
        shards = list(task.source.list_shards(self.split)) or [self.split]
        found = []
        for index, shard in enumerate(map(str, shards)):
            is_file = "/" in shard and files.path(shard).exists()
            name = f"{self.task}.{self.split}-{index:05d}-of-{len(shards):05d}"
            found.append(
                reading.Unit(
                    key=name,
                    size_bytes=files.size(shard) if is_file else 1,
                    payload={"index": index, "shards": len(shards)},
                    pieces=[*code, (shard, 0, None)] if is_file else code,
                )
            )
        return found

    def documents(
        self, source: str, unit: reading.Unit, tally: reading.Tally, facts: formats.TokenizerFacts
    ) -> Iterator[types.TokenDocument]:
        """Streams one unit's examples as tokens.

        Args:
          source: its name, which the documents carry.
          unit: one of `units()`.
          tally: of this unit or of all so far.
          facts: not used: the Task has its own vocabulary.

        Raises:
          ValueError: as `units`; or more examples without tokens than `max_bad_records`.
        """
        seqio = _library()
        task = self._task()
        index, shards = unit.payload["index"], unit.payload["shards"]
        read = tally.reading()
        dataset = _with_seed(task).get_dataset(
            sequence_length=self.sequence_length,
            split=self.split,
            shuffle=False,
            num_epochs=1,
            seed=self.seed + index,
            shard_info=seqio.ShardInfo(index=index, num_shards=shards) if shards > 1 else None,
            try_in_mem_cache=False,
        )
        names = [name for name in ("inputs", "targets") if name in task.output_features]
        for number, example in enumerate(dataset.as_numpy_iterator(), 1):
            parts = [np.asarray(example[name]) for name in names if name in example]
            if any(part.ndim != 1 or part.dtype.kind not in "iu" for part in parts):
                raise ValueError(
                    f"Task {self.task!r}: inputs and targets must be lists of token ids, got "
                    f"{[(part.shape, str(part.dtype)) for part in parts]}. Add "
                    "seqio.preprocessors.tokenize to its preprocessors."
                )
            if not parts or not len(parts[-1]):
                tally.drop("no target tokens", f"{unit.key}, example {number}")
                reading.check_budget(source, tally, self.max_bad_records)
                continue
            tally.documents += 1
            yield types.TokenDocument(
                tokens=np.concatenate(parts).astype(np.int32),
                loss=_loss(parts),
                text_bytes=sum(
                    len(task.output_features[name].vocabulary.decode(part.tolist()).encode())
                    for name, part in zip(names, parts, strict=True)
                ),
                id=f"{unit.key}:{number}",
                source=source,
            )
        read(unit.size_bytes)

    def vocabulary(self) -> Any:
        """The `seqio.Vocabulary` of the targets.

        Raises:
          ValueError: the Task has no targets, or inputs with another vocabulary.
        """
        features = self._task().output_features
        if "targets" not in features:
            raise ValueError(
                f"Task {self.task!r} has the features {sorted(features)}; midjax reads `targets`, "
                "and `inputs` before them. Rename them with seqio.preprocessors.rekey."
            )
        vocabulary = features["targets"].vocabulary
        if "inputs" in features and features["inputs"].vocabulary != vocabulary:
            raise ValueError(
                f"Task {self.task!r} has one vocabulary for inputs and another for targets; one "
                "model reads both: use one."
            )
        return vocabulary

    def _task(self) -> Any:
        task = _registered(self.module, self.task, "Task")
        if self.split not in task.splits:
            raise ValueError(
                f"Task {self.task!r} has no split {self.split!r}; it has {sorted(task.splits)}."
            )
        return task


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqioMixture:
    """A registered Mixture: its Tasks are sources, its rates are their weights.

    seqio samples at random by the rates, document by document; a midjax mixture gives exact shares
    of rows, so of tokens.

    Attributes:
      module, split, sequence_length, seed, max_bad_records: as in `SeqioTask`.
      mixture: its name.
    """

    module: str
    mixture: str
    split: str
    sequence_length: Mapping[str, int] | None = None
    seed: int = 0
    max_bad_records: int = 0

    def tasks(self) -> dict[str, SeqioTask]:
        """Its Tasks that have the split, those of mixtures inside it too, by name."""
        return {
            task.name: SeqioTask(
                module=self.module,
                task=task.name,
                split=self.split,
                sequence_length=self.sequence_length,
                seed=self.seed,
                max_bad_records=self.max_bad_records,
            )
            for task in self._tasks()
        }

    def rates(self) -> dict[str, float]:
        """Share of each Task, with a sum of 1, as seqio draws them."""
        mixture, tasks = self._mixture(), self._tasks()
        rates = {task.name: float(mixture.get_rate(task)) for task in tasks}
        total = sum(rates.values())
        if not total > 0:
            raise ValueError(f"Mixture {self.mixture!r} has the rates {rates}: none is above 0.")
        return {name: rate / total for name, rate in rates.items()}

    def _mixture(self) -> Any:
        return _registered(self.module, self.mixture, "Mixture")

    def _tasks(self) -> list[Any]:
        mixture = self._mixture()
        found = [task for task in mixture.tasks if self.split in task.splits]
        if not found:
            raise ValueError(
                f"No Task of the Mixture {self.mixture!r} has a split {self.split!r}; they have "
                f"{sorted(mixture.splits)}."
            )
        return found


def _library() -> Any:
    """The library seqio. TensorFlow's notes on the machine's hardware are left out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import seqio

    return seqio


def _registered(module: str, name: str, kind: str) -> Any:
    """A Task or Mixture by name, after its module was imported."""
    seqio = _library()
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module is there, and imports something that is not
        raise ValueError(
            f"No Python module {module!r} to register the {kind} {name!r}. Install its package, or "
            "set PYTHONPATH to the folder that it is in."
        ) from error
    registry = seqio.TaskRegistry if kind == "Task" else seqio.MixtureRegistry
    if name not in registry.names():
        raise ValueError(
            f"The module {module!r} registers no seqio {kind} {name!r}; there are "
            f"{sorted(registry.names())[:50]}."
        )
    return registry.get(name)


def _with_seed(task: Any) -> Any:
    """The Task, with a source that takes a seed: functions need not, and then seqio refuses one,
    but without it stochastic preprocessors differ from run to run."""
    seqio = _library()
    source = task.source
    if not isinstance(source, seqio.FunctionDataSource):
        return task
    function = source._dataset_fn
    if "seed" in inspect.signature(function).parameters:
        return task

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        return function(split=split, shuffle_files=shuffle_files)

    return task.replace(source=seqio.FunctionDataSource(dataset, splits=source.splits))


def _loss(parts: list[np.ndarray]) -> np.ndarray | None:
    """Targets bear loss, inputs before them do not."""
    if len(parts) == 1:
        return None
    inputs, targets = map(len, parts)
    return np.arange(inputs + targets) >= inputs
