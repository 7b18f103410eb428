# SPDX-License-Identifier: Apache-2.0
"""What one family of models is: names of tensors, keys of config.json and what they mean.

A family is data: `Family` holds a table of names and two small functions between config.json and
`TransformerConfig`. What all families share is here. A Hugging Face matrix is [out, in]; ours is
[*in, *out], so theirs = ours.reshape(prod(in), prod(out)).T, and vectors are flat there. A tensor
of theirs may hold several of ours, one below another along its output axis (fused projections).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from midjax.model import architecture, rope, transformer
from midjax.model.families import rope_keys

# Ours -> theirs, for families that have nothing else. {} is the layer, {expert} the expert.
ENDS: Mapping[str, str] = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "final_norm_bias": "model.norm.bias",
    "head": "lm_head.weight",
    "head_bias": "lm_head.bias",
}
LAYER: Mapping[tuple[str, ...], str] = {
    ("attn_norm",): "input_layernorm.weight",
    ("attn_norm_bias",): "input_layernorm.bias",
    ("wq",): "self_attn.q_proj.weight",
    ("q_bias",): "self_attn.q_proj.bias",
    ("wk",): "self_attn.k_proj.weight",
    ("k_bias",): "self_attn.k_proj.bias",
    ("wv",): "self_attn.v_proj.weight",
    ("v_bias",): "self_attn.v_proj.bias",
    ("q_norm",): "self_attn.q_norm.weight",
    ("k_norm",): "self_attn.k_norm.weight",
    ("wo",): "self_attn.o_proj.weight",
    ("out_bias",): "self_attn.o_proj.bias",
    ("mlp_norm",): "post_attention_layernorm.weight",
    ("mlp_norm_bias",): "post_attention_layernorm.bias",
    ("w_gate",): "mlp.gate_proj.weight",
    ("gate_bias",): "mlp.gate_proj.bias",
    ("w_up",): "mlp.up_proj.weight",
    ("up_bias",): "mlp.up_proj.bias",
    ("w_down",): "mlp.down_proj.weight",
    ("down_bias",): "mlp.down_proj.bias",
    ("router",): "mlp.gate.weight",
    ("expert_gate",): "mlp.experts.{expert}.gate_proj.weight",
    ("expert_up",): "mlp.experts.{expert}.up_proj.weight",
    ("expert_down",): "mlp.experts.{expert}.down_proj.weight",
}
# How many input axes our array of one layer (and expert) has; 0: a vector, or the embedding.
_INPUT_AXES: Mapping[str, int] = {
    "wq": 1,
    "wk": 1,
    "wv": 1,
    "wo": 2,
    "w_gate": 1,
    "w_up": 1,
    "w_down": 1,
    "router": 1,
    "expert_gate": 1,
    "expert_up": 1,
    "expert_down": 1,
    "head": 1,
}
# Tensors of old checkpoints that hold nothing learned.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)

# Our field -> their key, for numbers that mean the same.
_SAME: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "context_tokens": "max_position_embeddings",
}
_DEFAULT_INITIALIZER_STD = 0.02
# Their key -> the only values we compute; absent and null are fine everywhere.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention_dropout": (0, 0.0),
    "resid_pdrop": (0, 0.0),
    "embd_pdrop": (0, 0.0),
    "quantization_config": (),
    "use_bidirectional_attention": (False,),
}
_ACTIVATIONS: Mapping[str, architecture.Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Fields that say how to compute, which config.json does not hold.
_NUMERICS = ("param_dtype", "compute_dtype", "remat", "loss_chunk_tokens", "attention_kernel")

Config = architecture.TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table of families.

    Attributes:
      model_type, architecture: as config.json has them.
      other_architectures: other spellings of the latter.
      read: config.json -> the fields of `TransformerConfig` that are the family's own. Called with
        `defaults` filled in.
      write: the inverse: the family's own keys.
      layer: names of tensors that differ from `LAYER`; a tuple of several of ours is a fused
        tensor and replaces its parts.
      defaults: values of keys that a config.json may leave out; a key that is null there has none.
      only: key -> the values that are computed, beyond those of all families.
      activation_key: the key of the activation.
      dialect: of the keys of rotary embeddings.
      rope_by_kind: these are given for each kind of layers.
      even_width: transformers refuses a width that is no multiple of the heads.
    """

    model_type: str
    architecture: str
    other_architectures: tuple[str, ...] = ()
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda theirs: {}
    write: Callable[[Config], dict[str, Any]] = lambda config: {}
    layer: Mapping[tuple[str, ...], str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    activation_key: str = "hidden_act"
    dialect: rope_keys.Dialect = rope_keys.PLAIN
    rope_by_kind: bool = False
    even_width: bool = False


# ---- tensors ----


@dataclasses.dataclass(frozen=True)
class Part:
    """One of our arrays, or a layer or an expert of it.

    Attributes:
      path: in the tree of parameters.
      index: of the stack: (), (layer,) or (layer, expert), counted over the layers that have it.
      shape: of the indexed array.
    """

    path: tuple[str, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def input_axes(self) -> int:
        """How many of a matrix's axes are inputs; 0 for vectors and the embedding."""
        return _INPUT_AXES.get(self.path[-1], 0)

    @property
    def their_shape(self) -> tuple[int, ...]:
        """[out, in] of a matrix, [size] of a vector; the embedding as it is."""
        if self.input_axes:
            shape = self.shape
            return math.prod(shape[self.input_axes :]), math.prod(shape[: self.input_axes])
        return self.shape if self.path == ("embed",) else (math.prod(self.shape),)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of theirs: its name and what of ours it holds, top to bottom."""

    name: str
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in a checkpoint."""
        first = self.parts[0].their_shape
        return (sum(part.their_shape[0] for part in self.parts), *first[1:])


def tensors(family: Family, config: Config) -> Iterator[Tensor]:
    """Every tensor of a checkpoint of this model, in the order of computation."""
    shapes, members = transformer.abstract(config), transformer.layers_of(config)
    yield Tensor(ENDS["embed"], (Part(("embed",), (), shapes["embed"].shape),))
    rows = _rows(family, set(members))
    for layer in range(config.layers):
        for ours, theirs in rows.items():
            if layer not in members[ours[0]]:
                continue
            prefix = f"model.layers.{layer}."
            places = [(name, members[name].index(layer)) for name in ours]
            stacks = shapes["layers"]
            if "{expert}" not in theirs:
                parts = tuple(
                    Part(("layers", name), (at,), stacks[name].shape[1:]) for name, at in places
                )
                yield Tensor(prefix + theirs, parts)
                continue
            assert config.experts is not None
            for expert in range(config.experts.count):
                parts = tuple(
                    Part(("layers", name), (at, expert), stacks[name].shape[2:])
                    for name, at in places
                )
                yield Tensor(prefix + theirs.replace("{expert}", str(expert)), parts)
    for name in shapes:
        if name not in ("embed", "layers"):
            yield Tensor(ENDS[name], (Part((name,), (), shapes[name].shape),))


def _rows(family: Family, names: set[str]) -> dict[tuple[str, ...], str]:
    """The rows of the table that this model has, fused ones in place of their parts."""
    fused = {name for ours in family.layer if len(ours) > 1 for name in ours}
    rows = {ours: theirs for ours, theirs in LAYER.items() if not fused & set(ours)}
    rows |= family.layer
    return {ours: theirs for ours, theirs in rows.items() if set(ours) <= names}


# ---- config.json ----


def read(family: Family, theirs: Mapping[str, Any], **numerics: Any) -> Config:
    """Our config of a config.json; the numerics, which it does not hold, are given.

    Raises:
      ValueError: a key is missing, or has a value that we don't compute.
    """
    filled = {**family.defaults, **theirs}
    theirs = {key: value for key, value in filled.items() if value is not None}
    missing = [key for key in _SAME.values() if theirs.get(key) is None]
    if missing:
        raise ValueError(
            f"config.json lacks {', '.join(missing)}, which a model of type "
            f"{family.model_type!r} needs."
        )
    for key, allowed in {**_ONLY, **family.only}.items():
        value = theirs.get(key)
        if value is not None and value not in allowed:
            raise ValueError(
                f"config.json has {key} = {value!r}, which midjax does not compute; supported: "
                f"{' or '.join(repr(x) for x in (*allowed, None))}."
            )
    architectures = theirs.get("architectures") or [family.architecture]
    if not {family.architecture, *family.other_architectures} & set(architectures):
        raise ValueError(f"config.json is of {architectures}; supported: {family.architecture}.")
    fields: dict[str, Any] = {field: theirs[key] for field, key in _SAME.items()}
    fields["norm_eps"] = float(fields["norm_eps"])
    fields["kv_heads"] = theirs.get("num_key_value_heads") or fields["heads"]
    fields["head_dim"] = theirs.get("head_dim") or fields["dim"] // fields["heads"]
    fields["tied_head"] = bool(theirs.get("tie_word_embeddings", False))
    fields["initializer_std"] = float(theirs.get("initializer_range", _DEFAULT_INITIALIZER_STD))
    fields["activation"] = _activation(theirs, family.activation_key)
    fields["family"] = family.model_type
    own = family.read(theirs)
    numerics["loss_chunk_tokens"] = numerics.get("loss_chunk_tokens") or fields["context_tokens"]
    full, window = _ropes(family, theirs, fields["head_dim"])
    if "window" in own.get("layer_pattern", ()) and window != full:
        own["window_rope"] = window
    return Config(**(fields | own | numerics | {"rope": full}))


def _ropes(
    family: Family, theirs: Mapping[str, Any], head_dim: int
) -> tuple[rope.Rope, rope.Rope | None]:
    """Rotary embeddings of full-attention layers and of windows (None: the same)."""
    if family.rope_by_kind:
        return rope_keys.pair_from_hf(theirs, head_dim, family.dialect)
    return rope_keys.from_hf(theirs, head_dim, family.dialect), None


def _activation(theirs: Mapping[str, Any], key: str) -> architecture.Activation:
    name = theirs.get(key) or theirs.get("hidden_act") or "silu"
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"config.json has {key} = {name!r}, which midjax does not compute; supported: "
            f"{', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[name]


def write(family: Family, config: Config) -> dict[str, Any]:
    """The architecture's part of a config.json.

    Raises:
      ValueError: the family cannot say what the config does.
    """
    if family.even_width and config.dim % config.heads:
        raise ValueError(
            f"transformers refuses a {family.model_type} whose width is no multiple of its heads: "
            f"dim {config.dim}, heads {config.heads}."
        )
    names = {ours: theirs for theirs, ours in reversed(list(_ACTIVATIONS.items()))}
    theirs: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: getattr(config, field) for field, key in _SAME.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        family.activation_key: names[config.activation],
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied_head,
        "initializer_range": config.initializer_std,
        **family.write(config),
    }
    if family.rope_by_kind:
        theirs |= rope_keys.pair_written(
            config.rope, config.window_rope, config.head_dim, config.context_tokens, family.dialect
        )
    else:
        theirs |= rope_keys.written(
            config.rope, config.head_dim, config.context_tokens, family.dialect
        )
    _check_said(family, config, theirs)
    return theirs


def _check_said(family: Family, config: Config, theirs: Mapping[str, Any]) -> None:
    """What was written, read back, is the config: nothing of the model is lost on the way."""
    back = read(family, theirs, **{name: getattr(config, name) for name in _NUMERICS})
    # Another family may say the same, and a rotary embedding may come back under another name.
    free = ("family", "rope", "window_rope", "context_tokens")
    lost = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in free and getattr(back, field.name) != getattr(config, field.name)
    ]
    lost += [
        f"rope of {kind!r} layers"
        for kind in dict.fromkeys(config.layer_pattern)
        if not _turn_alike(back.rope_of(kind), config.rope_of(kind), config)
    ]
    if lost:
        raise ValueError(
            f"A model of type {family.model_type!r} cannot have this model's "
            f"{', '.join(lost)}: its config.json has no key for it. Export it as another family "
            "(TransformerConfig.family)."
        )


def _turn_alike(one: rope.Rope | None, other: rope.Rope | None, config: Config) -> bool:
    """Whether two rotary embeddings have the same frequencies at short and at long lengths."""
    if one is None or other is None or one == other:
        return one == other
    for length in (1, config.context_tokens, 4 * config.context_tokens):
        (freqs, factor), (want, by) = (
            rope.frequencies(x, config.head_dim, length) for x in (one, other)
        )
        close = freqs.shape == want.shape and np.allclose(freqs, want, rtol=1e-6, atol=0)
        if not (close and math.isclose(factor, by, rel_tol=1e-9)):
            return False
    return True
