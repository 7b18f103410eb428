# SPDX-License-Identifier: Apache-2.0
"""Which process of how many this one is, and where they meet: told, or found on a TPU."""

import dataclasses
import os
from collections.abc import Mapping

ADDRESS, NUMBER, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


class PlaceError(ValueError):
    """What the environment says of the processes does not suffice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A process among those of its run.

    Attributes:
      address: host:port of process 0, as all see it.
      number: processes of the run.
      index: of this one, from 0.
      is_tpu: it was found on a TPU, and must not compute on anything else.
    """

    address: str
    number: int
    index: int
    is_tpu: bool = False

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit():
            raise PlaceError(f"{ADDRESS} must be host:port of process 0, got {self.address!r}.")
        if not 0 <= self.index < self.number:
            raise PlaceError(
                f"{INDEX} = {self.index} with {NUMBER} = {self.number}: processes are numbered "
                f"from 0 to {NUMBER} - 1."
            )


def find(environ: Mapping[str, str] = os.environ, *, seconds: float = 300.0) -> Place | None:
    """The place of this process; None if it is alone. No device is touched.

    The environment goes first: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, all
    or none. Else a TPU's host or pod says it, unless JAX_PLATFORMS leaves out TPUs.

    Args:
      environ: variables.
      seconds: how long a host of a TPU is looked up.

    Raises:
      PlaceError: some of the three are missing or no numbers; a TPU that does not say.
    """
    given = {name: environ[name] for name in (ADDRESS, NUMBER, INDEX) if environ.get(name)}
    if not given:
        found = _of_tpu(environ, seconds)
        return found if found is not None and found.number > 1 else None
    if missing := [name for name in (ADDRESS, NUMBER, INDEX) if name not in given]:
        raise PlaceError(
            f"{', '.join(given)} is set without {' and '.join(missing)}: a process that is told "
            "where to meet needs all three. Set them, or none to train in one process."
        )
    for name in (NUMBER, INDEX):
        if not given[name].isdigit():
            raise PlaceError(f"{name} must be a whole number, got {given[name]!r}.")
    return Place(address=given[ADDRESS], number=int(given[NUMBER]), index=int(given[INDEX]))


def _of_tpu(environ: Mapping[str, str], seconds: float) -> Place | None:
    """As JAX finds it: by the variables of a GKE pod, or by the metadata of a TPU VM."""
    platforms = environ.get("JAX_PLATFORMS")
    if platforms and "tpu" not in platforms.split(","):
        return None
    # jax.distributed.initialize uses these too. It gives nobody the list, and ends the process
    # where another one is missing, without a word of which.
    from jax._src.clusters import cloud_tpu_cluster

    for kind in (cloud_tpu_cluster.GkeTpuCluster, cloud_tpu_cluster.GceTpuCluster):
        try:
            if not kind.is_env_present():
                continue
            port = environ.get("JAX_COORDINATOR_PORT")
            address = kind.get_coordinator_address(int(seconds), port)
            number, index = kind.get_process_count(), kind.get_process_id()
        except Exception as error:  # of the web, of the system, of what is not there
            raise PlaceError(
                f"This is a TPU's host, and it does not say which process of how many this is: "
                f"{type(error).__name__}: {error}. Set {ADDRESS}, {NUMBER} and {INDEX}."
            ) from error
        return Place(address=address, number=number, index=index, is_tpu=True)
    return None
