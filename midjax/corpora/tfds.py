# SPDX-License-Identifier: Apache-2.0
"""TFDS datasets that are prepared on disk as ArrayRecord. Imports no TensorFlow."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from midjax import files
from midjax.corpora import reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(reading.Reader):
    """A record per example, as `tfds.data_source` gives it, in its order. Nested features are
    reached by formats that take a path (`QuestionAnswer`) or a template (`{{ answers.text[0] }}`).

    Attributes:
      path: folder of one version of a dataset, the one with `dataset_info.json`.
      split: TFDS's notation, such as "train" or "train[:10%]".
    """

    path: str
    split: str

    def units(self) -> list[reading.Unit]:
        """Shards of the split; those above 64 MB in ranges of examples."""
        builder = self._builder()
        features = str(files.path(self.path) / "features.json")
        found, start = [], 0
        for shard in self._instructions(builder):
            name = str(shard.filename)
            short, size = name.split("/")[-1], files.size(name)
            for begin, end in reading.cut(shard.take, size):
                found.append(
                    reading.Unit(
                        key=f"{short}@{begin}" if begin else short,
                        size_bytes=size * (end - begin) // max(shard.examples_in_shard, 1),
                        payload={
                            "key": short,
                            "first": shard.skip + begin,  # in the shard
                            "begin": start + begin,  # in the split
                            "end": start + end,
                        },
                        pieces=[(name, 0, None), (features, 0, None)],
                    )
                )
            start += shard.take
        return found

    def records(self, unit: reading.Unit, read: Callable[[int], None]) -> Iterator[reading.Found]:
        """A record per example."""
        place = unit.payload
        begin, end = place["begin"], place["end"]
        source = self._builder().as_data_source(split=self.split)
        for index in range(begin, end):
            number = place["first"] + index - begin + 1
            where = f"{self.path}, {place['key']}, example {number}"
            try:
                record = source[index]
            except (RuntimeError, IndexError, ValueError) as error:
                raise ValueError(
                    f"{where} cannot be read: {str(error) or 'the file is cut off'}. Prepare the "
                    "dataset again."
                ) from error
            yield reading.Found(where, f"{place['key']}:{number}", record)
            read(unit.size_bytes * (index + 1 - begin) // (end - begin))

    def _builder(self) -> Any:
        """The builder.

        Raises:
          FileNotFoundError: there is no dataset in the folder.
          ValueError: it is not in a format of random access.
        """
        import tensorflow_datasets  # 0.3 s, and quiet as long as nothing asks for TensorFlow

        files.require_local(self.path, "Tfds")
        folder = files.path(self.path)
        if not (folder / "dataset_info.json").exists():
            versions = [str(file.parent) for file in folder.glob("*/dataset_info.json")]
            hint = f" Did you mean {sorted(versions)[-1]}?" if versions else ""
            raise FileNotFoundError(
                f"No dataset_info.json in {folder}. Give the folder of one version.{hint}"
            )
        builder = tensorflow_datasets.builder_from_directory(str(folder))
        kind = builder.info.file_format
        if kind is None or kind.value != "array_record":
            raise ValueError(
                f"{folder} is stored as {kind.value if kind else 'nothing'}; Tfds reads "
                "array_record. Prepare it with download_and_prepare(file_format='array_record'), "
                "or convert it: python -m tensorflow_datasets.scripts.convert_format --help."
            )
        return builder

    def _instructions(self, builder: Any) -> list[Any]:
        try:
            return builder.info.splits[self.split].file_instructions
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"Tfds.split {self.split!r} is not in {self.path}: {error}. It has "
                f"{sorted(builder.info.splits)}."
            ) from error
