# SPDX-License-Identifier: Apache-2.0
"""Which keys a query sees, by where both stand in the row."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Seen:
    """Whether a query at a place sees a key at a place: causal, and within a window.

    Called with numbers or arrays, on the host, in a model and in a kernel.

    Args:
      window_tokens: a query sees so many of the newest tokens, its own included (as in
        transformers, key > query - window); None for all.
    """

    window_tokens: int | None

    def __call__(self, queries: Any, keys: Any) -> Any:
        seen = keys <= queries
        if self.window_tokens is not None:
            seen &= keys > queries - self.window_tokens
        return seen
