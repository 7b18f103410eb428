# SPDX-License-Identifier: Apache-2.0
"""Compiles a lowered program and reads back what the compiler writes down beside it.

`compiled.as_text()` goes through jaxlib, which refuses some programs of a newer libtpu; and where
every array lies and how long it lives is in no attribute of the executable. libtpu itself writes
both, as text, into a folder that it is given.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

_FILES = {
    "text": "after_codegen.txt",
    "buffers": "after_optimizations-buffer-assignment.txt",
    "live_ranges": "after_optimizations-live-range.txt",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program.

    Attributes:
      executable: what `lowered.compile` gives.
      text: of the scheduled program, for `hlo.parse`.
      buffers, live_ranges: where arrays lie, and from when to when, for `buffers.parse`.
    """

    executable: Any
    text: str
    buffers: str
    live_ranges: str


class NoDumpError(RuntimeError):
    """The compiler has written nothing."""


def compiled(lowered: Any, compiler_options: Mapping[str, Any] | None = None) -> Program:
    """The program and its texts.

    Args:
      lowered: `jax.jit(f).lower(...)`, for devices of a described topology or real ones.
      compiler_options: flags without dashes, from `hardware.flags.as_compiler_options`.

    Raises:
      NoDumpError: the program was not compiled by libtpu, or by one that dumps other files.
      jax.errors.JaxRuntimeError: the compiler refuses the program: it doesn't fit, for one.
    """
    with tempfile.TemporaryDirectory(prefix="midjax-plan-") as folder:
        options = {**(compiler_options or {}), "xla_dump_to": folder}
        executable = lowered.compile(compiler_options=options)
        texts = {name: _read(pathlib.Path(folder), end) for name, end in _FILES.items()}
    return Program(executable=executable, **texts)


def _read(folder: pathlib.Path, end: str) -> str:
    found = sorted(folder.glob(f"*.{end}"), key=lambda path: path.stat().st_size)
    if not found:
        have = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise NoDumpError(
            f"The compiler has written no *.{end}, but {have}. Only libtpu's is read "
            "(libtpu 0.0.42 and 0.0.52 do): lower for the devices of a TPU topology."
        )
    return found[-1].read_text(encoding="utf-8", errors="replace")
