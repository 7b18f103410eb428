# SPDX-License-Identifier: Apache-2.0
"""A process that compiles steps: requests as JSON lines on stdin, answers as JSON lines on stdout.

    {"config": ..., "slice": "v5e-64", "rows": 64, "options": {...}, "entry": FOLDER}
    {"outcome": "compiled" | "refused" | "failed", ...}

    {"place": [{"data": 1, "fsdp": 64, ...}, ...], "slice": "v5e-64"}
    {"outcome": "placed", "fits": [true, ...]}

`compiler` starts it with the environment that libtpu needs. What libtpu prints goes to stderr; the
answers have the only copy of the real stdout.
"""

import importlib.metadata
import json
import os
import pathlib
import sys
import time
from typing import Any

from midjax.hardware import slices
from midjax.plan import cache, dump, program, refusal
from midjax.strict import fields
from midjax.train import recipe


def main() -> int:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        answer = _answer(json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "place" in request:
        try:
            fits = program.placeable(request["place"], slices.parse(request["slice"]))
        except ValueError:  # libtpu has no such slice, as each step's refusal says
            fits = [False] * len(request["place"])
        return {"outcome": "placed", "fits": fits}
    return _compile(request)


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    began, cpu_began = time.monotonic(), time.process_time()
    try:
        config = fields.from_json(recipe.Train, request["config"])
        slice_ = slices.parse(request["slice"])
        lowered = program.lower(config, slice_, request["rows"])
    except ValueError as error:  # the recipe's or the mesh's own refusal
        return {"outcome": "refused", "refusal": {"kind": "recipe", "said": str(error)}}
    except Exception as error:  # jax's, while tracing
        return {"outcome": "failed", "said": _first_line(error)}
    between = time.monotonic()
    facts: dict[str, Any] = {
        "mesh": lowered.mesh,
        "places": lowered.places,
        "argument_bytes": lowered.argument_bytes,
        "checkpoint_bytes": lowered.checkpoint_bytes,
        "lowering_seconds": between - began,
        "versions": versions(),
    }
    try:
        compiled = dump.compiled(lowered.step, request["options"])
    except Exception as error:
        facts["compiling_seconds"] = time.monotonic() - between
        found = refusal.read(str(error))
        if found is None:
            return {"outcome": "failed", "said": _first_line(error), **facts}
        return {"outcome": "refused", "refusal": found, **facts}
    facts["compiling_seconds"] = time.monotonic() - between
    facts["cpu_seconds"] = time.process_time() - cpu_began  # of all threads, lowering too
    entry = pathlib.Path(request["entry"])
    for name in cache.TEXTS:
        cache.write_text(entry, name, getattr(compiled, name))
    facts["memory"] = program.memory(compiled.executable)
    facts["arguments"] = list(lowered.arguments)
    program.forget()
    return {"outcome": "compiled", **facts}


def versions() -> dict[str, str]:
    """Of what decides the program, as they are installed."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
