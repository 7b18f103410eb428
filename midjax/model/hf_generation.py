# SPDX-License-Identifier: Apache-2.0
"""What a Hugging Face folder says of generation, kept from its import to an export.

    folder --read--> Said --keep--> RUN/source/ --carry--> the next run's --kept--> export

That is the token ids in config.json, which may be lists (Llama 3.1 ends at any of three tokens),
and generation_config.json as it is. Training changes neither, and a tokenizer knows only a part.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from midjax import files
from midjax.model import hf

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CONFIG, GENERATION = "config.json", "generation_config.json"
# Below a run directory.
FOLDER = "source"
# The largest in use, which list suppressed tokens, have some ten kilobytes.
_MOST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """What a model's first folder said.

    Attributes:
      place: where it was read, for messages.
      config: config.json, byte for byte.
      generation: generation_config.json, byte for byte; None where there is none.
    """

    place: str
    config: bytes
    generation: bytes | None

    @property
    def ids(self) -> dict[str, Any]:
        """Those of `IDS` that config.json has: a number, a list of numbers, or None.

        Of a model with several parts, its language model's count before those of the whole.
        """
        whole = json.loads(self.config)
        both = {**whole, **hf.language_model(whole)[0]}
        return {key: both[key] for key in IDS if key in both}

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: of generation_config.json, which goes first in transformers
        too, or else of config.json."""
        generation = json.loads(self.generation or b"{}")
        ids = generation.get("eos_token_id", self.ids.get("eos_token_id"))
        return tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)


def read(folder: str) -> Said:
    """What a Hugging Face folder says.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: a file is no JSON object, or an id is neither a number nor a list of numbers.
    """
    config = _content(folder, CONFIG)
    if config is None:
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: not a Hugging Face folder.")
    said = Said(place=folder, config=config, generation=_content(folder, GENERATION))
    for _ in _numbers(said):  # raises where one is none
        pass
    return said


def keep(said: Said, run_dir: str) -> None:
    """Writes it below a run directory."""
    place = files.path(run_dir) / FOLDER
    if said.generation is not None:
        files.write_bytes(place / GENERATION, said.generation)
    files.write_bytes(place / CONFIG, said.config)


def kept(run_dir: str) -> Said | None:
    """What `keep` wrote; None where it did not.

    Raises:
      ValueError: as `read`; somebody has changed it.
    """
    place = files.path(run_dir) / FOLDER
    return read(str(place)) if (place / CONFIG).exists() else None


def carry(run_dir: str, *, run: str | None, folder: str | None) -> None:
    """Copies to a run what it starts from says: another run, or a Hugging Face folder."""
    if kept(run_dir) is not None:
        return
    said = kept(run) if run is not None else read(folder) if folder is not None else None
    if said is not None:
        keep(said, run_dir)


def check(said: Said, knows: Callable[[int], bool]) -> None:
    """Refuses ids that the model's tokenizer does not have.

    Raises:
      ValueError: names the first.
    """
    for name, number in _numbers(said):
        if not knows(number):
            raise ValueError(
                f"{said.place}/{name} is {number}, and the tokenizer has no such token. If it is "
                "the right tokenizer, correct the number there."
            )


def _content(folder: str, name: str) -> bytes | None:
    """A file that holds a JSON object."""
    file = files.path(folder) / name
    if not file.exists():
        return None
    if file.stat().length > _MOST_BYTES:
        raise ValueError(f"{file} has over {_MOST_BYTES} bytes: that is no {name}.")
    if not isinstance(files.read_json(file), dict):
        raise ValueError(f"{file} is not a JSON object.")
    return file.read_bytes()


def _numbers(said: Said) -> Iterator[tuple[str, int]]:
    """("config.json: eos_token_id", number) for every id.

    Raises:
      ValueError: an id is something else.
    """
    for file, content in (
        (CONFIG, said.ids),
        (GENERATION, json.loads(said.generation or b"{}")),
    ):
        for key, value in content.items():
            if not key.endswith("_token_id") or value is None:
                continue
            for number in value if isinstance(value, list) else [value]:
                if not isinstance(number, int) or isinstance(number, bool):
                    raise ValueError(
                        f"{said.place}/{file}: {key} is {value!r}; an id is a number, a list of "
                        "numbers, or null."
                    )
                yield f"{file}: {key}", number
