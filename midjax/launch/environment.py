# SPDX-License-Identifier: Apache-2.0
"""Environment variables of a worker, each with its reason."""

import dataclasses

from midjax.hardware import flags as flags_lib
from midjax.launch import spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable.

    Attributes:
      name: of the variable.
      value: as the trainer sees it.
      why: what it is for.
    """

    name: str
    value: str
    why: str


# Set by GKE, by the machines' metadata, or by hand where those do not know: passed on, never made
# up.
PASSED_ON = (
    "MEGASCALE_COORDINATOR_ADDRESS",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_SLICE_ID",
    "MEGASCALE_PORT",
    "TPU_WORKER_ID",
    "TPU_WORKER_HOSTNAMES",
    # A process that is told one of them needs all three.
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
# Of those, what all machines may be told alike. The others would all be the same worker.
_OF_ALL_MACHINES = ("TPU_WORKER_HOSTNAMES",)
# How flags begin that libtpu alone knows.
_OF_LIBTPU = ("xla_tpu", "xla_jf", "xla_sc", "tpu")


def fixed(config: spec.Launch) -> tuple[Variable, ...]:
    """Variables whose values are known before a worker runs; those of the recipe last."""
    own = (
        Variable(
            name="JAX_PLATFORMS",
            value="tpu",
            why="without TPUs the run fails, in the place of going on with the CPU",
        ),
        Variable(
            name="LIBTPU_INIT_ARGS",
            value=flags_lib.as_libtpu_init_args(config.flags),
            why=f"flags of the compiler for {config.tpu.chip.name}: midjax/hardware/flags.py",
        ),
        Variable(
            name="JAX_COMPILATION_CACHE_DIR",
            value=f"{config.bucket}/cache/{config.tpu.chip.name}",
            why="a restart finds its programs compiled; keys have the versions and the flags",
        ),
        Variable(name="PYTHONUNBUFFERED", value="1", why="the log has what a killed run last said"),
        Variable(
            name="HF_HUB_OFFLINE",
            value="1",
            why="no worker waits for a download that another worker may not get",
        ),
    )
    given = tuple(Variable(name=k, value=v, why="Launch.env") for k, v in config.env.items())
    return (*(one for one in own if one.name not in config.env), *given)


def check(config: spec.Launch) -> None:
    """Refuses variables that would undo what is set here.

    Raises:
      LaunchError: names the variable.
      FlagError: XLA_FLAGS has one twice, or what is no flag.
    """
    for name, instead in (
        ("LIBTPU_INIT_ARGS", "Launch.compiler_flags adds and replaces single flags"),
        ("JAX_PLATFORMS", "a run that is launched needs its TPUs"),
        *(
            (name, "the machines say it themselves")
            for name in PASSED_ON
            if name not in _OF_ALL_MACHINES
        ),
    ):
        if name in config.env or name in config.secrets:
            raise spec.LaunchError(f"Launch.env has {name}: {instead}. Leave it out.")
    of_libtpu = {flag.name for flag in config.flags}
    for name in flags_lib.parse(config.env.get("XLA_FLAGS", "")):
        if name in of_libtpu or name.startswith(_OF_LIBTPU):
            raise spec.LaunchError(
                f"Launch.env has XLA_FLAGS with --{name}, which LIBTPU_INIT_ARGS alone may have: a "
                "run would end with it. Put it into Launch.compiler_flags."
            )
