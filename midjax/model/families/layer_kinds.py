# SPDX-License-Identifier: Apache-2.0
"""Which layers see a window of the past: `layer_types` of config.json, and our pattern.

["sliding_attention", "sliding_attention", "full_attention"] <-> ("window", "window", "full")
"""

from collections.abc import Mapping, Sequence
from typing import Any

from midjax.model import architecture


def pattern(kinds: Sequence[architecture.LayerType]) -> tuple[architecture.LayerType, ...]:
    """The shortest pattern that gives these kinds when repeated."""
    for period in range(1, len(kinds) + 1):
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds)):
            return tuple(kinds[:period])
    raise AssertionError("a list is its own pattern")


def uniform_window(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for families whose `sliding_window`, if any, holds in every layer."""
    window = theirs.get("sliding_window")
    return {"layer_pattern": ("window",), "window_tokens": window} if window else {}


def window_by_layer(theirs: Mapping[str, Any], kinds: Sequence[str] | None) -> dict[str, Any]:
    """Fields of `layer_types` and `sliding_window`.

    Args:
      theirs: config.json.
      kinds: what holds where `layer_types` is absent: "sliding_attention" or "full_attention" for
        each layer.
    """
    found = theirs.get("layer_types") or kinds
    count = theirs["num_hidden_layers"]
    names = {"sliding_attention": "window", "full_attention": "full"}
    if found is None or len(found) != count or not set(found) <= set(names):
        raise ValueError(
            f"config.json has layer_types = {found!r}; needed are {count} of {', '.join(names)}."
        )
    if "sliding_attention" not in found:
        return {}
    if not theirs.get("sliding_window"):
        raise ValueError(
            "config.json has layers of type sliding_attention and no sliding_window: give the "
            "number of tokens that they see."
        )
    ours: list[Any] = [names[kind] for kind in found]
    return {"layer_pattern": pattern(ours), "window_tokens": theirs["sliding_window"]}


def layer_types(config: architecture.TransformerConfig) -> list[str]:
    """`layer_types` of a config.json."""
    return [
        "sliding_attention" if config.layer_type(i).startswith("window") else "full_attention"
        for i in range(config.layers)
    ]
