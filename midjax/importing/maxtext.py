# SPDX-License-Identifier: Apache-2.0
"""MaxText: an Orbax item {params, opt_state, step}, layers stacked or one by one.

    16/items  --open--> Foreign: names by `maxtext_blocks`, moments by field name, rates by recipe

The checkpoint holds no configuration. What cannot be read off its arrays is given as MaxText's own
config has it, and held against the model: the block, the rotary embedding, the learning rate.

Rotary pairs. Of its rotary embeddings "default" turns dimension i with i + H/2, as midjax does;
"llama3.1" turns 2i with 2i + 1, and so does "yarn" unless rope_interleave is false. The rows of
such queries and keys are put in our order, their biases, norms and moments too: the same model.

The head. A tied one is divided by sqrt(dim) where normalize_embedding_logits is true (the default
there): TransformerConfig.logits_scale. Its weights are rounded to bfloat16 in any case: with
TransformerConfig.head_dtype = "bfloat16" its losses come out to the last digit, without it better.

`step` is the number of updates done: folder 16 was saved after the update of step 16, the 17th.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from midjax import files, foreign_item
from midjax.importing import foreign as foreign_lib
from midjax.importing import maxtext_blocks, maxtext_schedule
from midjax.model import architecture, transformer

# An array that every model has: what stands before its name is the root of a tree of parameters, or
# of a moment of them.
_LANDMARK = "token_embedder/embedding"
_LEFT_OUT = {
    "step": f"{foreign_lib.READ}the step",
    "nnx_aux/*": "state of MaxText's random streams",
    "opt_state/losses": "history of skip_step_on_spikes",
    "opt_state/grad_norms": "history of skip_step_on_spikes",
    "opt_state/is_skipped": "history of skip_step_on_spikes",
    "opt_state/count": "history of skip_step_on_spikes",
}
# Names whose last axis is turned.
_TURNED = frozenset({"wq", "wk", "q_bias", "k_bias", "q_norm", "k_norm"})
# What 0.2.5 has built in for its llama3.1, layers/embeddings.py.
_LLAMA31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_context_tokens": 8192,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxText:
    """A checkpoint of MaxText.

    Attributes:
      path: folder of one step, or the item `items` in it.
      decoder_block, model_name, rope_type, rope_interleave, param_scan_axis,
        normalize_embedding_logits: as in the config of the run that wrote it (base.yml, its model
        file, its command line).
      learning_rate: the rate that the next update would have had; a `MaxTextSchedule` computes it.
        None where the checkpoint has no optimizer state.
    """

    path: str
    decoder_block: maxtext_blocks.Name
    model_name: str
    rope_type: Literal["default", "llama3.1", "yarn"]
    rope_interleave: bool
    param_scan_axis: int
    normalize_embedding_logits: bool
    learning_rate: float | maxtext_schedule.MaxTextSchedule | None

    def __post_init__(self) -> None:
        if self.decoder_block not in maxtext_blocks.BLOCKS:
            raise ValueError(
                f"MaxText.decoder_block is {self.decoder_block!r}; midjax computes "
                f"{', '.join(maxtext_blocks.BLOCKS)}. A new one is a row of maxtext_blocks.BLOCKS, "
                "if the decoder can compute it."
            )
        if self.param_scan_axis not in (0, 1):
            raise ValueError(f"MaxText.param_scan_axis must be 0 or 1, got {self.param_scan_axis}.")
        if isinstance(self.learning_rate, float) and self.learning_rate < 0:
            raise ValueError(f"MaxText.learning_rate must be 0 or more, got {self.learning_rate}.")

    @property
    def interleaved(self) -> bool:
        """Whether neighbours turn together; MaxText looks at the model's name first."""
        if self.model_name.startswith("llama3.1") or self.rope_type == "llama3.1":
            return True
        return self.rope_type == "yarn" and self.rope_interleave

    def open(self, model: architecture.TransformerConfig | None) -> foreign_lib.Foreign:
        """Reads names, shapes, step and counts.

        Raises:
          ForeignError: no model was given, or it contradicts what MaxText computes.
          CheckpointError: not an item of Orbax, or damaged.
        """
        if model is None:
            raise foreign_lib.ForeignError(
                "A MaxText checkpoint does not say what its model is: give Import.model."
            )
        wrong = self._contradictions(model)
        if wrong:
            raise foreign_lib.ForeignError(
                f"The model does not fit MaxText's decoder_block {self.decoder_block!r}: "
                f"{'; '.join(wrong)}."
            )
        inner = files.path(self.path) / "items"
        folder = str(inner if inner.exists() else self.path)
        item = foreign_item.ForeignItem(folder)
        roots = [
            name.removesuffix(_LANDMARK)
            for name in item.arrays
            if name.endswith(f"/{_LANDMARK}") and not name.startswith("opt_state/")
        ]
        if len(roots) != 1:
            raise foreign_lib.ForeignError(
                f"{folder} is no MaxText checkpoint: {len(roots)} of its arrays are called "
                f".../{_LANDMARK}; it has {foreign_lib.listed(sorted(item.arrays))}."
            )
        step = _number(item, "step") if "step" in item.arrays else 0
        return foreign_lib.Foreign(
            origin={
                "format": "maxtext",
                "path": self.path,
                "step": step,
                "decoder_block": self.decoder_block,
                "model_name": self.model_name,
            },
            model=model,
            arrays=item.arrays,
            read=item.read,
            params=_Names(self, model, item.arrays, roots[0]).takes(),
            step=step,
            **_state(item, self.learning_rate, folder, roots[0]),
        )

    def _contradictions(self, model: architecture.TransformerConfig) -> list[str]:
        wrong = maxtext_blocks.contradictions(
            self.decoder_block,
            model,
            model_name=self.model_name,
            normalize_embedding_logits=self.normalize_embedding_logits,
        )
        kinds: tuple[str, ...] = ("none", "pi")
        if self.model_name.startswith("llama3.1") or self.rope_type == "llama3.1":
            kinds = ("none", "llama3")
        elif self.rope_type == "yarn":
            kinds = ("yarn",)
        scaling = model.rope.scaling
        if scaling.kind not in kinds:
            wrong.append(
                f"Rope.scaling is {scaling.kind!r}, and rope_type {self.rope_type!r} of the model "
                f"{self.model_name!r} has {' or '.join(kinds)}"
            )
        elif scaling.kind == "llama3":
            wrong += [
                f"RopeScaling.{name} is {getattr(scaling, name)}, and MaxText has {value} built in"
                for name, value in _LLAMA31.items()
                if getattr(scaling, name) != value
            ]
        if model.window_rope is not None and self.decoder_block not in ("gemma2", "gemma3"):
            wrong.append(f"window_rope is set, and {self.decoder_block!r} has one rotary embedding")
        if model.qk_norm == "whole" and not self.model_name.startswith("olmo3"):
            wrong.append(
                f"qk_norm is 'whole', which MaxText computes for models called olmo3..., not for "
                f"{self.model_name!r}"
            )
        return wrong


@dataclasses.dataclass(frozen=True)
class _Names:
    """Which of their arrays our parameters are made of."""

    source: MaxText
    model: architecture.TransformerConfig
    arrays: Mapping[str, Any]
    root: str

    def takes(self) -> dict[str, foreign_lib.Take]:
        """Our name -> how to make it."""
        offset = -1.0 if self.model.norm == "rms_plus_one" else 0.0
        ends = {
            "embed": foreign_lib.Take(theirs=(f"{self.root}token_embedder/embedding",)),
            "final_norm": foreign_lib.Take(
                theirs=(f"{self.root}decoder/decoder_norm/scale",), offset=offset
            ),
        }
        if not self.model.tied_head:
            ends["head"] = foreign_lib.Take(theirs=(f"{self.root}decoder/logits_dense/kernel",))
        block, made = maxtext_blocks.BLOCKS[self.source.decoder_block], {}
        for ours in self._wanted():
            if ours in block.names:
                made[f"layers/{ours}"] = self._layer(
                    ours, block, offset if ours.endswith("norm") else 0.0
                )
        return ends | made

    def _wanted(self) -> list[str]:
        return sorted(transformer.abstract(self.model)["layers"])

    def _layer(self, ours: str, block: maxtext_blocks.Block, offset: float) -> foreign_lib.Take:
        """One of our arrays, stacked over all layers."""
        name, pick = self._fused(ours, block.names[ours])
        stacked, single = self._places(block, name)
        axis = self.source.param_scan_axis
        turn = self.source.interleaved and ours in _TURNED

        def change(*theirs: jax.Array) -> jax.Array:
            units = [jnp.moveaxis(x, axis, 0) for x in theirs[: len(stacked)]]
            parts = []
            if units:  # [units, layers of a unit, ...]: layers in the order of depth
                layers = jnp.stack(units, axis=1)
                parts.append(layers.reshape(-1, *layers.shape[2:]))
            if single:
                parts.append(jnp.stack(theirs[len(stacked) :]))
            array = pick(jnp.concatenate(parts))
            return halves(array) if turn else array

        return foreign_lib.Take(theirs=(*stacked, *single), change=change, offset=offset)

    def _places(self, block: maxtext_blocks.Block, name: str) -> tuple[list[str], list[str]]:
        """Names of the arrays that stack units, and of those of single layers."""
        depth, period = self.model.layers, len(block.pattern)
        decoder = f"{self.root}decoder/"
        scanned = any(
            x.startswith((f"{decoder}layers/", f"{decoder}layers_rem")) for x in self.arrays
        )
        if block.words and depth % period:
            raise foreign_lib.ForeignError(
                f"The layers of this block come in units of {period}, and the model has {depth}."
            )
        if not scanned and block.words:
            return [], [
                f"{decoder}layers_{layer // period}/{name.format(block.words[layer % period])}"
                for layer in range(depth)
            ]
        if not scanned:
            return [], [f"{decoder}layers_{layer}/{name}" for layer in range(depth)]
        if block.words:
            return [f"{decoder}layers/{name.format(word)}" for word in block.words], []
        if period == 1:
            return [f"{decoder}layers/{name}"], []
        units = [f"{decoder}layers/layers_{i}/{name}" for i in range(period) if depth >= period]
        rest = [f"{decoder}layers_remainder/layers_{i}/{name}" for i in range(depth % period)]
        return units, rest

    def _fused(self, ours: str, name: str) -> tuple[str, Callable[[jax.Array], jax.Array]]:
        """Their name, and what to take of the stack [L, ...] of it, where products are fused."""
        model = self.model
        N, K = model.heads, model.kv_heads
        heads = {"q": (0, N), "k": (N, N + K), "v": (N + K, N + 2 * K)}
        if ours in ("w_gate", "w_up") and self._has("/wi/kernel"):
            place = 0 if ours == "w_gate" else 1
            return name.replace(f"wi_{place}", "wi"), lambda x: x[:, :, place]
        if ours[-1] in heads and ours[0] == "w" and self._has("/qkv_proj/kernel"):
            begin, end = heads[ours[-1]]
            fused = re.sub("/(query|key|value)/", "/qkv_proj/", name)
            return fused, lambda x: x[:, :, begin:end]
        if ours.endswith("_bias") and ours[0] in heads and self._has("/qkv_proj/bias"):
            begin, end = heads[ours[0]]
            fused = re.sub("/(query|key|value)/", "/qkv_proj/", name)
            return fused, lambda x: x[:, begin:end]
        if ours in ("q_norm", "k_norm") and model.qk_norm == "whole":
            # Kept as [heads * H] there.
            return name, lambda x: x.reshape(x.shape[0], -1, model.head_dim)
        return name, lambda x: x

    def _has(self, ending: str) -> bool:
        return any(name.endswith(ending) for name in self.arrays)


def halves(array: jax.Array) -> jax.Array:
    """[..., H] with pairs (2i, 2i + 1) -> pairs (i, i + H/2)."""
    pairs = array.reshape(*array.shape[:-1], -1, 2)
    return jnp.swapaxes(pairs, -1, -2).reshape(array.shape)


def _number(item: foreign_item.ForeignItem, name: str) -> int:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return int(item.read({name: here})[name])


def _state(
    item: foreign_item.ForeignItem,
    learning_rate: float | maxtext_schedule.MaxTextSchedule | None,
    folder: str,
    root: str,
) -> dict[str, Any]:
    """The fields of `Foreign` about optimizer state, found by the names of Optax's fields.

    Where they stand among the transformations depends on what MaxText chained and wrapped, and so
    does whether the moments have a level "params" as the parameters do.
    """
    pattern = re.compile(rf"(opt_state/(?:.+/)?)nu/((?:.+/)?){_LANDMARK}")
    adams = [match.groups() for name in item.arrays if (match := pattern.fullmatch(name))]
    if not adams:
        if learning_rate is not None:
            raise foreign_lib.ForeignError(
                f"{folder} has no moments of Adam, so no learning rate is in force: set "
                "MaxText.learning_rate = None. Runs can start from its weights."
            )
        return {"left_out": _LEFT_OUT}
    if len(adams) > 1:
        raise foreign_lib.ForeignError(
            f"{folder} has more than one optimizer with moments: {adams}. midjax can take over one."
        )
    if learning_rate is None:
        raise foreign_lib.ForeignError(
            f"{folder} has moments of Adam: say at which learning rate its next update would have "
            "been, with MaxText.learning_rate = a number or @MaxTextSchedule()."
        )
    ((adam, tree),) = adams  # opt_state/0/nu/params/token_embedder/embedding
    if f"{adam}count" not in item.arrays:
        raise foreign_lib.ForeignError(f"{folder} has {adam}nu and no {adam}count.")
    chain = adam.rstrip("/").rpartition("/")[0]
    others = [
        name
        for name in item.arrays
        if re.fullmatch(rf"{chain}/\d+/count", name) and not name.startswith(adam)
    ]
    adam_count = _number(item, f"{adam}count")
    schedule_count = _number(item, others[0]) if len(others) == 1 else adam_count
    rate = (
        learning_rate.rate(schedule_count)
        if isinstance(learning_rate, maxtext_schedule.MaxTextSchedule)
        else foreign_lib.Rate(last=learning_rate, next=learning_rate, peak=learning_rate)
    )
    return {
        "moment": lambda kind, name: f"{adam}{kind}/{tree}" + name.removeprefix(root),
        "adam_count": adam_count,
        "schedule_count": schedule_count,
        "lr": rate,
        "left_out": _LEFT_OUT
        | {f"{adam}count": f"{foreign_lib.READ}Adam's count"}
        | dict.fromkeys(others, f"{foreign_lib.READ}the position on the schedule"),
    }
