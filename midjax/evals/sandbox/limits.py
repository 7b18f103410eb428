# SPDX-License-Identifier: Apache-2.0
"""What a program in the sandbox may use: time, memory, processes, files, output."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one program's run.

    Attributes:
      cpu_seconds: processor time of each process, whole seconds. The published harnesses give 3 s
        of wall time; processor time makes a verdict independent of what else the machine does.
      wall_seconds: elapsed time of the whole run, start-up included; for programs that wait.
      memory_bytes: address space of each process; together they can have `processes` times it.
      processes: processes and threads of the tested program, itself counted. The usual tasks need
        1, and then `memory_bytes` bounds it all.
      files_bytes: the run's only writable place, /tmp, which is memory; also the size of one file.
      open_files: descriptors of each process.
      output_bytes: what it may print before it is stopped.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 20.0
    memory_bytes: int = 1 << 30
    processes: int = 1
    files_bytes: int = 64 << 20
    open_files: int = 64
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        least = {
            "cpu_seconds": 1,
            "memory_bytes": 64 << 20,
            "processes": 1,
            "files_bytes": 1 << 12,
            "open_files": 16,
            "output_bytes": 1,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number from {low} up, got {value!r}.")
        if not 0 < self.wall_seconds < float("inf"):
            raise ValueError(f"wall_seconds must be above 0, got {self.wall_seconds!r}.")
