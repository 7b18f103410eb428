# SPDX-License-Identifier: Apache-2.0
"""The checkpoints that go into an average: their JSON, what must agree, and their arrays by name.

(run, step) --gather--> Ingredient (JSON) --check--> one model, one tokenizer --read--> arrays
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from midjax import checkpoint, files, foreign_item, log, trees
from midjax.average import methods
from midjax.model import architecture

# Fields of a model that say how it is computed, not what: the average takes those of the first.
NUMERICS = (
    "compute_dtype",
    "head_dtype",
    "remat",
    "loss_chunk_tokens",
    "attention_kernel",
    "initializer_std",
    "quantization",
)

# (run, step or None for the newest) -> (model, step, the checkpoint's JSON items)
Find = Callable[[str, int | None], tuple[architecture.TransformerConfig, int, dict[str, Any]]]


class AverageError(ValueError):
    """These checkpoints cannot be averaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One checkpoint, known from its JSON.

    Attributes:
      run, step: which.
      model: what its parameters are.
      manifest: its JSON.
    """

    run: str
    step: int
    model: architecture.TransformerConfig
    manifest: Mapping[str, Any]

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.run}, step {self.step}"

    @property
    def hash(self) -> str:
        """SHA-256 over its JSON items, the digests of all arrays among them."""
        return str(self.manifest["seal"])

    @property
    def tokenizer_hash(self) -> str | None:
        """Of the tokenizer that it was trained with; None where that is not known."""
        return self.manifest["tokenizer_hash"]


def gather(checkpoints: Sequence[methods.Checkpoint], find: Find) -> list[Ingredient]:
    """Reads the JSON of each.

    Raises:
      CheckpointError: there is no such checkpoint, or its JSON is damaged.
    """
    found = []
    for run, asked in checkpoints:
        model, step, facts = find(run, asked)
        found.append(Ingredient(run=run, step=step, model=model, manifest=facts["manifest"]))
    return found


def check(ingredients: Sequence[Ingredient]) -> str | None:
    """One model, one tokenizer, finite numbers, and none named twice; returns the tokenizer's hash.

    Raises:
      AverageError: names the field, both values and both checkpoints.
    """
    first = ingredients[0]
    seen: dict[tuple[str, int], Ingredient] = {}
    for one in ingredients:
        norm = one.manifest["norms"]["params"]
        if not math.isfinite(norm):
            raise AverageError(
                f"{one.place}, has parameters that are not finite (their norm is {norm}). Leave "
                "it out."
            )
        same = seen.setdefault((str(files.path(one.run).resolve()), one.step), one)
        if same is not one:
            raise AverageError(
                f"{one.place}, is named twice (as {same.run} and {one.run}). Name it once, with "
                "the weight that it shall have."
            )
        if wrong := _differences(_plain(first.model), _plain(one.model)):
            listed = "; ".join(f"{field}: {a!r} and {b!r}" for field, a, b in wrong)
            raise AverageError(
                f"{first.place}, and {one.place}, are not the same model: {listed}. Only models "
                "of one shape that compute the same can be averaged."
            )
    return _tokenizer_hash(ingredients)


def _tokenizer_hash(ingredients: Sequence[Ingredient]) -> str | None:
    known = [one for one in ingredients if one.tokenizer_hash is not None]
    for one in known:
        if one.tokenizer_hash != known[0].tokenizer_hash:
            raise AverageError(
                f"{known[0].place}, and {one.place}, were trained with different tokenizers: "
                f"tokenizer_hash: {known[0].tokenizer_hash!r} and {one.tokenizer_hash!r}. Their "
                "ids mean different words."
            )
    for one in ingredients:
        if known and one.tokenizer_hash is None:
            log.say(
                f"{one.place}, came without a tokenizer: whether it is the others' cannot be "
                "checked"
            )
    return known[0].tokenizer_hash if known else None


def _plain(model: architecture.TransformerConfig) -> dict[str, Any]:
    """Without numerics, as JSON gives it back."""
    fields = json.loads(json.dumps(dataclasses.asdict(model)))
    return {name: value for name, value in fields.items() if name not in NUMERICS}


def _differences(ours: Any, theirs: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """("rope.theta", 10000.0, 500000.0) for each value that differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [
            found
            for name in ours
            for found in _differences(ours[name], theirs[name], f"{field}.{name}".lstrip("."))
        ]
    return [] if ours == theirs else [(field, ours, theirs)]


@contextlib.contextmanager
def _naming(ingredient: Ingredient) -> Iterator[None]:
    """Errors of the library below name a folder; these name the ingredient too."""
    try:
        yield
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(
            f"{ingredient.place}: {error} Or leave it out of the average."
        ) from error


class Reader:
    """The parameters of one ingredient, array by array, each one verified.

    Raises:
      CheckpointError: they cannot be read, or do not fit the targets.
    """

    def __init__(self, ingredient: Ingredient, targets: Any) -> None:
        self._of = ingredient
        saved = ingredient.manifest["arrays"]
        if wrong := trees.mismatches(saved, {"params": targets}):
            raise checkpoint.CheckpointError(
                f"{ingredient.place}, does not hold the parameters of its model: "
                f"{trees.listed(wrong)}."
            )
        folder = files.path(checkpoint.folder(ingredient.run)) / str(ingredient.step) / "params"
        with _naming(ingredient):
            self._item = foreign_item.ForeignItem(str(folder))

    def read(self, name: str, sharding: jax.sharding.Sharding) -> jax.Array:
        """The array called "layers/wq", and no other.

        Raises:
          DamagedError: it is not what was saved.
          CheckpointError: it cannot be read.
        """
        with _naming(self._of):
            array = self._item.read({name: sharding})[name]
        full = f"params/{name}"
        if trees.digests({full: array})[full] != self._of.manifest["digests"][full]:
            raise checkpoint.DamagedError(
                self._of.run,
                self._of.step,
                f"{full} is not what was saved (digests differ). The files are damaged: leave "
                "this checkpoint out of the average, or fetch it again.",
            )
        return array
