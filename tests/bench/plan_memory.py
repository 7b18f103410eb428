# SPDX-License-Identifier: Apache-2.0
"""Does the compiler run out of memory where `midjax plan` says so? Bracketed by the batch.

    make plan-memory            (2 cores, 3 GB: 10 minutes)

Llama-3.2-1B (its config.json) on four v5e chips, in rows of 2,048 tokens, with what the layers'
products gave kept for the backward pass: ever more rows, until libtpu refuses the program. Every
batch that it takes must have a peak, as planned, under what it lets a program use; of the first one
that it refuses, the planned peak continued in a straight line must be above.

Prints a row for each batch, writes build/bench/plan_memory.json; exits with 1 where it is not so.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tiny_run

from midjax.hardware import flags, slices
from midjax.model import sharding
from midjax.plan import analysis, compiler, predict
from midjax.train import recipe

OUT = pathlib.Path("build/bench/plan_memory.json")
NOWHERE = pathlib.Path("/nowhere")
TOKENS = 2048
FOUR = slices.parse("v5e-4")


def train(rows: int) -> recipe.Train:
    """The recipe with so many rows."""
    model = tiny_run.model(
        vocab_size=128_256, dim=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn_dim=8192,
        tied_head=True, context_tokens=TOKENS, loss_chunk_tokens=512, compute_dtype="bfloat16",
        remat="save_projections",
    )  # fmt: skip
    return tiny_run.train(
        NOWHERE,
        model=model,
        data=tiny_run.data(NOWHERE, row_tokens=TOKENS, batch_rows=rows),
        train_tokens=10 * rows * TOKENS,
        mesh=sharding.Mesh(data=1, fsdp=-1, tensor=1),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cache", help="folder of compiled steps; the user's own otherwise")
    args = parser.parse_args()
    options = flags.as_compiler_options(flags.flags("v5e"))
    room = FOUR.chip.usable_hbm_bytes
    rows, found = 8, []
    with compiler.Compiler(args.cache) as made:
        while not found or found[-1]["outcome"] == "fits":
            compiled = made.compile(train(rows), FOUR, rows, options, f"{rows} rows")
            step = predict.step(train(rows), FOUR, rows, 1, compiled, analysis.Knobs())
            peak = step.found.peak_bytes if step.found else None
            found.append(
                {"rows": rows, "outcome": step.outcome, "peak_bytes": peak, "room_bytes": room,
                 "missing_bytes": step.missing_bytes, "versions": made.versions}
            )  # fmt: skip
            said = f"{peak / 1e9:.2f} GB of {room / 1e9:.2f}" if peak else step.said
            print(f"{rows:3} rows: {step.outcome}, {said}", flush=True)
            rows += 4
    fits = [one for one in found if one["peak_bytes"]]
    slope = fits[-1]["peak_bytes"] - fits[-2]["peak_bytes"]
    met = all(one["peak_bytes"] <= room for one in fits)
    met &= found[-1]["outcome"] == "out of memory" and fits[-1]["peak_bytes"] + slope > room
    print(f"the compiler refuses where the plan says so: {met}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
