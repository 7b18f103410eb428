# SPDX-License-Identifier: Apache-2.0
"""What an importer has to say of a foreign checkpoint, and how it becomes a run directory.

    Foreign (names, moments, counts, rate) --fit.check--> --convert.write--> a run directory

An importer of your own is a function that returns a `Foreign`; `write` does the rest. Say that a
trainer keeps `np.savez` files with a stacked "attn/q" of [D, L, N * H], moments called "m/attn/q"
and "v/attn/q", and counts its updates in "updates":

    def opened(file, model):
        arrays, (N, H) = np.load(file), (model.heads, model.head_dim)
        def heads(x):                       # [D, L, N * H] -> [L, D, N, H]
            return jnp.moveaxis(x, 1, 0).reshape(x.shape[1], x.shape[0], N, H)
        return foreign.Foreign(
            origin={"format": "mine", "path": file},
            model=model,
            arrays={name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()},
            read=lambda want: {name: jax.device_put(arrays[name], s) for name, s in want.items()},
            params={
                "embed": foreign.Take(theirs=("embed",)),
                "layers/wq": foreign.Take(theirs=("attn/q",), change=heads),
                ...                         # every name of transformer.abstract(model)
            },
            moment=lambda kind, name: {"mu": "m/", "nu": "v/"}[kind] + name,
            left_out={"updates": "read as the step"},
            step=int(arrays["updates"]), adam_count=..., schedule_count=...,
            lr=foreign.Rate(last=3e-4, next=3e-4, peak=3e-4),
        )

    convert.write(opened("state.npz", model), output="runs/imported", mesh=sharding.make(mesh))

Nothing is silent: an array of ours that nothing fills, an array of theirs that nothing uses, shapes
that do not fit and numbers that would be rounded are errors with their names. That every number
arrived is proven: a digest of the parameters and of each moment, there and here, must agree. A run
that starts from the result proves their norms again, as from any checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from midjax import files
from midjax.model import architecture, hf_generation, transformer

Moment = Literal["mu", "nu"]
Shardings = Mapping[str, jax.sharding.Sharding]

# Fields of a model that say how it is held and computed, not what it computes: no checkpoint of
# others holds them.
NUMERICS = (
    "family",
    "initializer_std",
    "param_dtype",
    "compute_dtype",
    "head_dtype",
    "remat",
    "loss_chunk_tokens",
    "attention_kernel",
    "quantization",
)
_MOST_LISTED = 12
# How the reasons in `Foreign.left_out` begin for what was read for a number in it.
READ = "read as "


class ForeignError(ValueError):
    """A foreign checkpoint cannot be read, or is not what was said of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Take:
    """How one of our arrays is made of theirs.

    Attributes:
      theirs: names of the arrays that it is made of.
      change: makes ours of them, in that order: moves axes, reshapes, slices, stacks. It may only
        rearrange numbers, because the moments are made by the same function: a factor on a
        parameter would be another trajectory under Adam.
      offset: added to the parameter, never to its moments: -1 for norms whose weight is added to 1
        here and not there.
    """

    theirs: tuple[str, ...]
    change: Callable[..., jax.Array] = lambda array: array
    offset: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """Learning rates around a checkpoint: of its last update, of the next one, and the peak."""

    last: float
    next: float
    peak: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign:
    """A checkpoint of others, opened.

    Attributes:
      origin: where it comes from, plain JSON with "format" and "path", for the lineage.
      model: what its parameters are.
      arrays: name -> shape and dtype of every array in it.
      read: {name: sharding} -> {name: array}; called once per array of ours.
      params: our name ("layers/wq", as in `transformer.Params`) -> how to make it.
      load: for formats with a reader of their own: our targets (shapes, dtypes, shardings) ->
        parameters. `arrays` and `params` are then empty.
      left_out: pattern of names of theirs that no array of ours needs -> why ("read as ..." for the
        step and counts). All others must be used.
      moment: ("mu" or "nu", name of a parameter of theirs) -> name of that moment; None where the
        checkpoint has no moments of Adam, and then neither counts nor rates.
      step: updates done.
      adam_count: of its Adam, which bias correction needs.
      schedule_count: position on its learning rate curve.
      lr: rates in force.
      tokenizer: content of a Hugging Face tokenizer's files by name; None where there is none.
      said: its token ids and settings for generation; None where it has none.
    """

    origin: Mapping[str, Any]
    model: architecture.TransformerConfig
    arrays: Mapping[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
    read: Callable[[Shardings], Mapping[str, jax.Array]] | None = None
    params: Mapping[str, Take] = dataclasses.field(default_factory=dict)
    load: Callable[[transformer.Params], transformer.Params] | None = None
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    moment: Callable[[Moment, str], str] | None = None
    step: int = 0
    adam_count: int | None = None
    schedule_count: int | None = None
    lr: Rate | None = None
    tokenizer: Mapping[str, bytes] | None = None
    said: hf_generation.Said | None = None

    def __post_init__(self) -> None:
        state = (self.adam_count, self.schedule_count, self.lr)
        if any((part is None) != (self.moment is None) for part in state):
            raise ForeignError(
                f"{self.origin}: moments, adam_count, schedule_count and lr come together or not "
                f"at all, got moments {self.moment is not None}, {state}."
            )
        if (self.load is None) == (self.read is None) or (self.load and self.moment):
            raise ForeignError(
                f"{self.origin}: give either read, with params, or load, which has no moments."
            )

    @property
    def place(self) -> str:
        """What and where it is, for messages."""
        return f"{self.origin.get('format')} checkpoint {self.origin.get('path')}"

    def names(self, take: Take, kind: Moment | None) -> tuple[str, ...]:
        """Names of theirs for a parameter of ours, or for a moment of it."""
        if kind is None:
            return take.theirs
        assert self.moment is not None
        return tuple(self.moment(kind, name) for name in take.theirs)


def agree(
    given: architecture.TransformerConfig | None,
    found: architecture.TransformerConfig,
    where: str,
) -> architecture.TransformerConfig:
    """The model that was given, if it is the one that was found but for `NUMERICS`.

    Args:
      given: the user's; None takes the one found.
      found: what the checkpoint says of itself.
      where: the checkpoint, for the message.

    Raises:
      ForeignError: they contradict each other; names each field.
    """
    if given is None:
        return found
    wrong = [
        f"{field.name}: there {getattr(found, field.name)}, given {getattr(given, field.name)}"
        for field in dataclasses.fields(found)
        if field.name not in NUMERICS and getattr(found, field.name) != getattr(given, field.name)
    ]
    if wrong:
        raise ForeignError(
            f"The model that was given contradicts {where}: {'; '.join(wrong)}. Give Import.model "
            "= None to take what the checkpoint says."
        )
    return given


def listed(names: list[str]) -> str:
    """The first of many names or findings, for a message."""
    rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return "; ".join(names[:_MOST_LISTED]) + rest


def kinds(foreign: Foreign) -> tuple[Moment | None, ...]:
    """What there is to move: None for the parameters, then their moments."""
    return (None,) if foreign.moment is None else (None, "mu", "nu")


# Files of a Hugging Face tokenizer that are carried into a run directory.
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def read_tokenizer(folder: str) -> dict[str, bytes]:
    """The files of a tokenizer's folder by name.

    Raises:
      FileNotFoundError: no tokenizer.json.
    """
    place = files.path(folder)
    found = {name: (place / name).read_bytes() for name in _TOKENIZER if (place / name).exists()}
    if "tokenizer.json" not in found:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer.json. Give the folder of a Hugging Face fast tokenizer."
        )
    return found
