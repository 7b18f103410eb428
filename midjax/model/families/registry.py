# SPDX-License-Identifier: Apache-2.0
"""The table of families: `model_type` -> `table.Family`."""

from collections.abc import Mapping
from typing import Any

from midjax.model.families import gemma, llama, mixtral, olmo, phi, qwen, smollm, table

FAMILIES: Mapping[str, table.Family] = {
    family.model_type: family
    for family in (
        llama.LLAMA,
        llama.MISTRAL,
        mixtral.MIXTRAL,
        qwen.QWEN2,
        qwen.QWEN3,
        qwen.QWEN3_MOE,
        phi.PHI3,
        phi.PHIMOE,
        olmo.OLMO2,
        olmo.OLMO3,
        olmo.OLMOE,
        gemma.GEMMA2,
        gemma.GEMMA3,
        smollm.SMOLLM3,
    )
}


def family(name: Any) -> table.Family:
    """The family of a `model_type`.

    Raises:
      ValueError: it is not in the table; lists those that are.
    """
    if name not in FAMILIES:
        raise ValueError(
            f"Model type {name!r} is not supported; supported: {', '.join(sorted(FAMILIES))}. "
            "A new family is one row in midjax/model/families/."
        )
    return FAMILIES[name]
