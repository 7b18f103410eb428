# SPDX-License-Identifier: Apache-2.0
"""llama2.c: `.bin` files of weights and of tokenizers, as its export.py and tokenizer.py write.

    stories260K.bin, tok512.bin --open--> Foreign with a Hugging Face tokenizer

Weights, all float32 and little-endian, layers stacked:

    legacy (v0)  7 ints: dim, hidden_dim, layers, heads, kv heads, vocabulary, length; a negative
                 vocabulary says that the head is an array of its own.
                 tok_embeddings, attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, norm, two
                 tables of the rotary embedding (skipped), and the head
    v1           "ak42" as a number, the version 1, the same 7 ints, a byte: head shared; to byte
                 256. attention_norm, ffn_norm, norm, tok_embeddings, wq, wk, wv, wo, w1, w2, w3,
                 and the head
    v2           quantized to 8 bits: refused

Matrices are [out, in]. Rotary pairs are neighbours there, so the rows of wq and wk are put in our
order. What the header does not hold is what llama2.c's model.py has: theta 10,000, epsilon 1e-5,
scores over sqrt(head_dim).
"""

import dataclasses
import math
import struct
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from midjax import files
from midjax.importing import foreign, llama2c_tokenizer
from midjax.model import architecture, rope

_MAGIC = 0x616B3432
_V1_BYTES = 256
_HEADER = struct.Struct("<7i")
_V0_ORDER = ("tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2",
             "w3", "norm", "freqs_cos", "freqs_sin", "output")  # fmt: skip
_V1_ORDER = ("attention_norm", "ffn_norm", "norm", "tok_embeddings", "wq", "wk", "wv", "wo", "w1",
             "w2", "w3", "output")  # fmt: skip
_TABLES = "a table of the rotary embedding, which is computed"
_THETA, _EPSILON = 10_000.0, 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama2c:
    """A model of llama2.c.

    Attributes:
      path: the weights.
      tokenizer: its tokenizer's `.bin`; None for none.
    """

    path: str
    tokenizer: str | None

    def open(self, model: architecture.TransformerConfig | None) -> foreign.Foreign:
        """Reads the header; weights stay in the file until they are asked for.

        Raises:
          FileNotFoundError: no such file.
          ForeignError: not such a file, truncated, quantized, or of another model than was given.
        """
        header = read_header(self.path)
        model = foreign.agree(model, config_of(header), self.path)
        weights = np.memmap(files.path(self.path), "<f4", "r", offset=header.begin)
        places = header.places
        files_tokenizer = None
        if self.tokenizer is not None:
            files_tokenizer = llama2c_tokenizer.convert(self.tokenizer, header.vocab_size)

        def read(want: foreign.Shardings) -> dict[str, jax.Array]:
            return {
                name: jax.device_put(
                    weights[places[name][0] :][: math.prod(places[name][1])].reshape(
                        places[name][1]
                    ),
                    sharding,
                )
                for name, sharding in want.items()
            }

        return foreign.Foreign(
            origin={"format": "llama2.c", "path": self.path, "version": header.version},
            model=model,
            arrays={
                name: jax.ShapeDtypeStruct(shape, np.float32) for name, (_, shape) in places.items()
            },
            read=read,
            params=_takes(model),
            left_out={"freqs_cos": _TABLES, "freqs_sin": _TABLES},
            tokenizer=files_tokenizer,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself.

    Attributes:
      version: 0 or 1.
      begin: byte at which the weights begin.
      tied: the head is the embedding.
    """

    version: int
    begin: int
    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    length: int
    tied: bool

    @property
    def is_sound(self) -> bool:
        """Whether such a model can be."""
        sizes = (self.dim, self.hidden_dim, self.layers, self.heads, self.kv_heads,
                 self.vocab_size, self.length)  # fmt: skip
        return min(sizes) > 0 and self.dim % self.heads == 0 and self.heads % self.kv_heads == 0

    @property
    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Name -> (number of floats before it, shape)."""
        D, F, L, V = self.dim, self.hidden_dim, self.layers, self.vocab_size
        H = D // self.heads
        shapes = {
            "tok_embeddings": (V, D), "output": (V, D), "norm": (D,),
            "attention_norm": (L, D), "ffn_norm": (L, D),
            "wq": (L, D, D), "wk": (L, self.kv_heads * H, D), "wv": (L, self.kv_heads * H, D),
            "wo": (L, D, D), "w1": (L, F, D), "w2": (L, D, F), "w3": (L, F, D),
            "freqs_cos": (self.length, H // 2), "freqs_sin": (self.length, H // 2),
        }  # fmt: skip
        found, at = {}, 0
        for name in _V0_ORDER if self.version == 0 else _V1_ORDER:
            if name == "output" and self.tied:
                continue
            found[name] = (at, shapes[name])
            at += math.prod(shapes[name])
        return found

    @property
    def bytes(self) -> int:
        """Length of the whole file."""
        return self.begin + 4 * sum(math.prod(shape) for _, shape in self.places.values())


def read_header(path: str) -> Header:
    """The header of a file whose length fits it.

    Raises:
      FileNotFoundError: no such file.
      ForeignError: neither format, truncated, or quantized.
    """
    place = files.path(path)
    with place.open("rb") as file:
        start = file.read(_V1_BYTES)
    length = place.stat().length
    if len(start) < _HEADER.size:
        raise foreign.ForeignError(f"{path} has {length} bytes: it is no file of llama2.c.")
    magic, version = struct.unpack_from("<Ii", start)
    if magic == _MAGIC:
        if len(start) < _V1_BYTES:
            raise foreign.ForeignError(f"{path} is truncated: its header alone has 256 bytes.")
        if version != 1:
            raise foreign.ForeignError(
                f"{path} is of llama2.c's version {version}; midjax reads the legacy format and "
                "version 1, both float32 (version 2 is quantized). Export it with --version 1."
            )
        sizes = _HEADER.unpack_from(start, 8)
        tied = bool(start[8 + _HEADER.size])
        begin = _V1_BYTES
    else:
        version, begin = 0, _HEADER.size
        sizes = _HEADER.unpack_from(start)
        tied = sizes[5] > 0
        sizes = (*sizes[:5], abs(sizes[5]), sizes[6])
    names = ("dim", "hidden_dim", "layers", "heads", "kv_heads", "vocab_size", "length")
    header = Header(version=version, begin=begin, tied=tied, **dict(zip(names, sizes, strict=True)))
    if not header.is_sound:
        raise foreign.ForeignError(
            f"{path} is no file of llama2.c: it begins neither with the number of version 1 "
            f"({_MAGIC:#x}, found {magic:#x}) nor with the sizes of a model (found {sizes})."
        )
    if length != header.bytes:
        raise foreign.ForeignError(
            f"{path} has {length} bytes, and a model of the sizes in its header ({sizes}, "
            f"{'shared head' if tied else 'a head of its own'}) has {header.bytes}. It is "
            f"{'truncated: fetch it again' if length < header.bytes else 'another format'}."
        )
    return header


def config_of(header: Header) -> architecture.TransformerConfig:
    """The model of a header, in float32."""
    return architecture.TransformerConfig(
        vocab_size=header.vocab_size,
        dim=header.dim,
        layers=header.layers,
        heads=header.heads,
        kv_heads=header.kv_heads,
        head_dim=header.dim // header.heads,
        ffn_dim=header.hidden_dim,
        norm_eps=_EPSILON,
        tied_head=header.tied,
        context_tokens=header.length,
        rope=rope.Rope(theta=_THETA, scaling=rope.RopeScaling(kind="none")),
        initializer_std=0.02,
        param_dtype="float32",
        compute_dtype="float32",
        remat="none",
        loss_chunk_tokens=header.length,
    )


def _takes(model: architecture.TransformerConfig) -> Mapping[str, foreign.Take]:
    L, D, H = model.layers, model.dim, model.head_dim

    def of_heads(x: Any) -> Any:  # [L, heads * H, D] -> [L, D, heads, H]
        return jnp.moveaxis(x.reshape(L, -1, H, D), -1, 1)

    def turned(x: Any) -> Any:  # pairs (2i, 2i + 1) -> (i, i + H/2)
        pairs = jnp.swapaxes(x.reshape(L, -1, H // 2, 2, D), 2, 3)
        return of_heads(pairs.reshape(x.shape))

    def transposed(x: Any) -> Any:
        return jnp.swapaxes(x, -1, -2)

    changes: dict[str, tuple[str, Any]] = {
        "layers/wq": ("wq", turned),
        "layers/wk": ("wk", turned),
        "layers/wv": ("wv", of_heads),
        "layers/wo": ("wo", lambda x: transposed(x).reshape(L, -1, H, D)),
        "layers/w_gate": ("w1", transposed),
        "layers/w_up": ("w3", transposed),
        "layers/w_down": ("w2", transposed),
        "head": ("output", transposed),
    }
    same = {
        "embed": "tok_embeddings",
        "layers/attn_norm": "attention_norm",
        "layers/mlp_norm": "ffn_norm",
        "final_norm": "norm",
    }
    if model.tied_head:
        del changes["head"]
    return {name: foreign.Take(theirs=(theirs,)) for name, theirs in same.items()} | {
        name: foreign.Take(theirs=(theirs,), change=change)
        for name, (theirs, change) in changes.items()
    }
