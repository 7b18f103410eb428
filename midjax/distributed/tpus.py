# SPDX-License-Identifier: Apache-2.0
"""Whether a run that is to compute on TPUs can: it is told why not before it reads anything."""

import importlib.util
from collections.abc import Mapping

import jax


class NoTpuError(ValueError):
    """A run that is to compute on TPUs has none."""


def check_library(environ: Mapping[str, str]) -> None:
    """No device is touched.

    Args:
      environ: variables; JAX_PLATFORMS says whether TPUs are asked for, TPU_LIBRARY_PATH may say
        where another libtpu is than the installed one.

    Raises:
      NoTpuError: libtpu is not installed.
    """
    has_library = environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu")
    if _asks(environ) and not has_library:
        raise NoTpuError(
            "JAX_PLATFORMS asks for a TPU, and libtpu, which computes on it, is not installed: "
            "pip install 'midjax[tpu]'. To compute on the CPU, set JAX_PLATFORMS=cpu."
        )


def check_chips(environ: Mapping[str, str], *, found: bool = False) -> None:
    """Starts JAX on the chips; processes must be connected before.

    Args:
      environ: see `check_library`.
      found: whether this is a TPU's host, asked for or not.

    Raises:
      NoTpuError: JAX cannot compute on them.
    """
    if not found and not _asks(environ):
        return
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        why = str(error)
    else:
        if backend == "tpu":
            return
        why = f"JAX computes on {backend!r}; set JAX_PLATFORMS=tpu to hear why"
    raise NoTpuError(
        "This run is to compute on a TPU and cannot: libtpu is missing, the chips are in use by "
        f"another process, or this machine has none. {why}. To compute on the CPU, set "
        "JAX_PLATFORMS=cpu."
    )


def _asks(environ: Mapping[str, str]) -> bool:
    return "tpu" in environ.get("JAX_PLATFORMS", "").split(",")
