# SPDX-License-Identifier: Apache-2.0
"""The record that crosses from corpora to curation and tokenization. Imports no jax.

The record of the later stages, `Batch`, is a JAX pytree and lives in `midjax.batches.batch`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text with its provenance.

    Attributes:
      text: Unicode text.
      id: unique within its source and stable between runs.
      source: name of the source that it came from.
      meta: further fields of the original record, as plain JSON values.
    """

    text: str
    id: str
    source: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
