# SPDX-License-Identifier: Apache-2.0
"""Steps compiled in a process of their own, and kept: (recipe, slice, rows) -> `Compiled`.

A compilation may end its process, or need an environment that this one does not have; then the
process is started again, and the plan has a row that says what happened.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import midjax
from midjax import log, units
from midjax.hardware import slices as slices_lib
from midjax.model import sharding
from midjax.plan import cache, program
from midjax.strict import fields
from midjax.train import recipe as train_lib

# Seconds between two signs of life of a compilation.
_TELL_EVERY = 20.0
# Of the shell: they would change what is compiled, and a run on TPU gets its flags elsewhere.
_NOT_INHERITED = (
    "LIBTPU_INIT_ARGS",
    "XLA_FLAGS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
)
_WORKER = ["-m", "midjax.plan.worker"]
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class NoCompilerError(ValueError):
    """libtpu is not installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What came of one step.

    Attributes:
      outcome: "compiled"; "refused", for lack of memory or by the recipe's own checks; "failed".
      record: what the worker said, see `worker`.
      entry: where it is kept; None where it is not: it failed, or the recipe refuses it.
      was_kept: whether nothing was compiled for it now.
    """

    outcome: str
    record: dict[str, Any]
    entry: pathlib.Path | None
    was_kept: bool

    @property
    def folder(self) -> pathlib.Path:
        """`entry`, of what was compiled."""
        assert self.entry is not None, "nothing was compiled"
        return self.entry

    def text(self, name: str) -> str:
        """One of `cache.TEXTS`."""
        return cache.read_text(self.folder, name)


def _filled(config: train_lib.Train, slice_: slices_lib.Slice) -> train_lib.Train:
    """With the -1 of its mesh filled in, so that one mesh has one key; a misfit is told later."""
    try:
        sizes = sharding.sizes(config.mesh, slice_.chips)
    except ValueError:
        return config
    mesh = sharding.Mesh(**dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    return dataclasses.replace(config, mesh=mesh)


class Compiler:
    """A worker process and the folder of what was compiled. Use as a context.

    Args:
      folder: of the cache; None is the user's.
      say: prints a line for people.

    Raises:
      NoCompilerError: libtpu is not installed.
    """

    def __init__(self, folder: str | None, say: Callable[[str], None] = log.say) -> None:
        if importlib.util.find_spec("libtpu") is None:
            raise NoCompilerError(
                "`plan` asks the TPU's compiler, which is not installed (it needs no TPU): "
                "pip install 'midjax[tpu]'."
            )
        self.versions = {n: importlib.metadata.version(n) for n in ("jax", "jaxlib", "libtpu")}
        self.compilations = 0
        self._folder, self._say = cache.folder(folder), say
        self._process: subprocess.Popen[str] | None = None
        self._noise: Any = None

    def __enter__(self) -> "Compiler":
        ignored = [name for name in _NOT_INHERITED if os.environ.get(name)]
        if ignored:
            self._say(f"not used for planning: {', '.join(ignored)} of this shell")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def compile(
        self,
        config: train_lib.Train,
        slice_: slices_lib.Slice,
        rows: int,
        options: dict[str, str],
        title: str,
    ) -> Compiled:
        """The step of a batch of `rows`, from the cache where it is there.

        Args:
          config, slice_, rows: see `program.lower`.
          options: of the compiler.
          title: of the compilation, for people.
        """
        try:
            # Of what the key leaves out: a step that was kept says nothing of this run's length.
            program.schedule(config)
        except ValueError as error:
            said = {"refusal": {"kind": "recipe", "said": str(error)}}
            return Compiled(outcome="refused", record=said, entry=None, was_kept=False)
        config = _filled(config, slice_)
        plain = fields.to_json(config)
        key = cache.key(
            plain,
            topology=slice_.topology_name,
            slices=slice_.slices,
            rows=rows,
            options=options,
            versions=self.versions,
        )
        entry = self._folder / key
        if (record := cache.read(entry)) is not None:
            return Compiled(outcome=record["outcome"], record=record, entry=entry, was_kept=True)
        # Written beside its place: another plan may be at the same step.
        made = self._folder / f".{key}.{uuid.uuid4().hex}.tmp"
        request = {
            "config": plain,
            "slice": slice_.name,
            "rows": rows,
            "options": options,
            "entry": str(made),
        }
        self.compilations += 1
        began = time.monotonic()
        self._say(f"compiling {title}")
        record = self._ask(request)
        self._say(f"  {record['outcome']} after {units.human_seconds(time.monotonic() - began)}")
        # The recipe's own refusal costs nothing to hear again.
        if record["outcome"] == "failed" or record.get("refusal", {}).get("kind") == "recipe":
            shutil.rmtree(made, ignore_errors=True)
            return Compiled(outcome=record["outcome"], record=record, entry=None, was_kept=False)
        cache.write(made, record)
        shutil.rmtree(entry, ignore_errors=True)
        made.rename(entry)
        return Compiled(outcome=record["outcome"], record=record, entry=entry, was_kept=False)

    def placeable(
        self, slice_: slices_lib.Slice, meshes: Sequence[Mapping[str, int]]
    ) -> list[bool]:
        """See `program.placeable`.

        Raises:
          RuntimeError: the worker ended.
        """
        request = {"place": [dict(mesh) for mesh in meshes], "slice": slice_.name}
        answer = self._ask(request)
        if answer["outcome"] != "placed":
            raise RuntimeError(answer["said"])
        return answer["fits"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        process = self._start()
        assert process.stdin is not None and process.stdout is not None
        answer = ""
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            while not select.select([process.stdout], [], [], _TELL_EVERY)[0]:
                self._say(f"  {units.human_seconds(time.monotonic() - began)} ...")
            answer = process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            code = process.wait()
            last = self._last_words()
            self._stop()
            return {
                "outcome": "failed",
                "said": f"the compiler's process ended with {code}: {last}",
            }
        return json.loads(answer)

    def _start(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        # The midjax that asks is the one that compiles, wherever it was started.
        package = str(pathlib.Path(midjax.__file__).parent.parent)
        paths = [package, *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
        self._noise = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  see _stop
        self._process = subprocess.Popen(
            [sys.executable, *_WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
            env=environment,
        )
        return self._process

    def _last_words(self) -> str:
        self._noise.seek(0)
        lines = [line.strip() for line in self._noise if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def _stop(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=2)  # nothing of it is worth waiting for
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._noise.close()
