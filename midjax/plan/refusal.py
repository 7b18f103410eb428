# SPDX-License-Identifier: Apache-2.0
"""What the TPU's compiler says when a program does not fit, as numbers.

libtpu 0.0.52 has two sentences for HBM, and several for VMEM:

    ... Ran out of memory on HBM, the total memory required for HLO temporaries (149.06G) exceeds
    available HBM (15.75G) ...
    ... Ran out of memory in memory space hbm. Used 17.31G of 15.75G hbm. Exceeded hbm capacity by
    1.56G. ...
    ... while allocating on stack for %NAME = <the whole instruction>. Scoped allocation with size
    33.51M and limit 16.00M exceeded scoped vmem limit by 17.51M ...
"""

import re
from typing import Any

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AMOUNT = r"([\d.]+)([BKMGT]?)"
_USED = re.compile(rf"Used {_AMOUNT} of {_AMOUNT} (hbm|vmem)", re.IGNORECASE)
_REQUIRED = re.compile(
    rf"memory required for HLO temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"
)
_SCOPED = re.compile(rf"size {_AMOUNT} and limit {_AMOUNT} exceeded scoped vmem limit")
_STACK = re.compile(r"while allocating on stack for (%[\w.-]*\w)")
_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|Ran out of memory|exceeded scoped vmem", re.IGNORECASE)


def read(message: str) -> dict[str, Any] | None:
    """{"kind": "hbm" or "vmem", "needs_bytes", "has_bytes", "said"}; None where it is no lack of
    memory. The numbers are missing where the message has none.
    """
    if not _MEMORY.search(message):
        return None
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = next((line for line in lines if _MEMORY.search(line)), lines[0])
    if found := _USED.search(message):
        kind, numbers = found[5].lower(), found.groups()[:4]
    elif found := _REQUIRED.search(message):
        kind, numbers = "hbm", found.groups()
    elif found := _SCOPED.search(message):
        kind, numbers = "vmem", found.groups()
        said = _of_scoped(message, *numbers)
    else:
        return {"kind": "vmem" if "vmem" in message.lower() else "hbm", "said": said}
    needs, has = _bytes(*numbers[:2]), _bytes(*numbers[2:])
    return {"kind": kind, "needs_bytes": needs, "has_bytes": has, "said": said}


def _of_scoped(message: str, size: str, unit: str, limit: str, limit_unit: str) -> str:
    """One line for a sentence whose instruction may take up a page."""
    found = _STACK.search(message)
    name = found[1] if found else "an instruction"
    return (
        f"{name} wants {size}{unit} of VMEM, and {limit}{limit_unit} is the most: a higher "
        "--xla_tpu_scoped_vmem_limit_kib allows more (Plan.compiler_flags, and "
        "Launch.compiler_flags of the run)"
    )


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit.upper()])
