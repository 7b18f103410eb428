# SPDX-License-Identifier: Apache-2.0
"""The flags of the TPU's compiler that a run was started with, beside those of its chip.

`midjax launch` and `tpu/run.sh` set them. A run that was started by hand has none: it trains, but
not by the program that `midjax plan` compiled.
"""

import os

from midjax.hardware import chips, flags

_VARIABLE = "LIBTPU_INIT_ARGS"


def check(device_kind: str) -> None:
    """Refuses a flag that is given twice: libtpu would take the last one in silence.

    Args:
      device_kind: as `jax.Device.device_kind` says it; none but TPUs read the variable.

    Raises:
      FlagError: names the flag and its values.
    """
    if device_kind in chips.OF_KIND:
        try:
            _given()
        except flags.FlagError as error:
            raise flags.FlagError(f"{_VARIABLE}: {error}") from None


def lacking(device_kind: str, *, dense: bool) -> str | None:
    """A sentence about the chip's flags that this process does not have; None where it has all.

    A flag with another value than the table's is somebody's choice.

    Args:
      device_kind: see `check`.
      dense: False for a mixture of experts.
    """
    name = chips.OF_KIND.get(device_kind)
    if name is None:
        return None
    given, table = _given(), flags.flags(name, dense)
    missing = [flag.text for flag in table if flag.name not in given]
    if not missing:
        return None
    return (
        f"{len(missing)} of the {len(table)} compiler flags for {name} are not in {_VARIABLE}, so "
        "the program is another than `midjax plan` has, and slower or larger: "
        f"{' '.join(missing)}. `midjax launch` and tpu/run.sh set them, tpu/pods/ has them."
    )


def _given() -> dict[str, str]:
    return flags.once(os.environ.get(_VARIABLE, "").split())
