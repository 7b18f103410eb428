# SPDX-License-Identifier: Apache-2.0
"""The records that cross from corpora to curation and tokenization. Imports no jax.

The record of the later stages, `Batch`, is a JAX pytree and lives in `midjax.batches.batch`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text with its provenance.

    Attributes:
      text: Unicode text.
      id: unique within its source and stable between runs.
      source: name of the source that it came from.
      meta: further fields of the original record, as plain JSON values.
      loss: ranges [start, end) of characters that bear loss, rising; None is all of the text.
      special: whether strings in the text that look like special tokens are some: True where a
        format put them there (a chat template, fill-in-the-middle), False where they are text.
    """

    text: str
    id: str
    source: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: tuple[tuple[int, int], ...] | None = None
    special: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDocument:
    """One document as token ids.

    Attributes:
      tokens: ids, BOS and EOS included where there are some.
      loss: whether a token bears loss when it is the target; None is all of them.
      text_bytes: UTF-8 bytes of its text.
      id, source: as in `Document`.
    """

    tokens: Int[np.ndarray, " tokens"]
    loss: Bool[np.ndarray, " tokens"] | None
    text_bytes: int
    id: str
    source: str
