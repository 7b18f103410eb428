# SPDX-License-Identifier: Apache-2.0
"""How far `midjax plan` is from the utilisation that others have published for known runs.

    make plan-published            (Python 3.12, 2 cores, 6 GB: an hour; a minute with kept steps)
    python tests/bench/plan_published.py --only llama2-70b-v5p

The runs are MaxText's, with MaxText's programs. Here the same work (model, rows, slice, what is
split over what, and the remat policy that comes nearest) is planned with midjax's own step. So a
row holds two differences: that of the judge from the hardware, and that of one program from the
other. What is published as utilisation counts all pairs of tokens for attention, where midjax
counts those that a causal model looks at: compared are tokens per second and chip, which are
published too, and the planned utilisation of a row is the published one times their ratio. What
kernels of experts reach (`analysis.Knobs`) was chosen after these rows were seen.

Prints a table, and writes build/bench/plan_published.json, from which midjax/plan/published.json is
copied by hand when it is to be what `plan` says of itself.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tiny_run

from midjax.hardware import flags, slices
from midjax.model import architecture, rope, sharding
from midjax.plan import analysis, compiler, predict, program
from midjax.train import placement, recipe
from midjax.train import step as step_lib

OUT = pathlib.Path("build/bench/plan_published.json")
NOWHERE = pathlib.Path("/nowhere")
_TABLE = "MaxText's table of optimized models"
TRILLIUM = f"{_TABLE}, and its benchmarks/maxtext_trillium_model_configs.py"
V5P = f"{_TABLE}, and its benchmarks/maxtext_v5p_model_configs.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A published run.

    Attributes:
      slice: of the run.
      rows: per chip, of an update.
      microbatches: that midjax makes of them, where its step has no room for all at once.
      state_memory: where midjax keeps Adam's moments.
      tokens: of a row.
      model: its shape, with the nearest remat policy.
      published: utilisation, per cent.
      tokens_per_second: of a chip, as published.
      source: where it is published.
    """

    slice: str
    rows: int
    tokens: int
    model: dict
    published: float
    tokens_per_second: float
    source: str
    microbatches: int = 1
    state_memory: placement.Memory = "device"


def llama2(**kwargs) -> dict:
    """Llama 2 70B (its config.json)."""
    return {
        "vocab_size": 32_000, "dim": 8192, "layers": 80, "heads": 64, "kv_heads": 8,
        "head_dim": 128, "ffn_dim": 28_672,
    } | kwargs  # fmt: skip


def llama3(size: str, **kwargs) -> dict:
    """Llama 3.1 (config.json)."""
    dim, layers, heads, ffn = {
        "8b": (4096, 32, 32, 14_336),
        "70b": (8192, 80, 64, 28_672),
        "405b": (16_384, 126, 128, 53_248),
    }[size]
    scaling = rope.RopeScaling(
        kind="llama3",
        factor=8.0,
        original_context_tokens=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    return {
        "vocab_size": 128_256, "dim": dim, "layers": layers, "heads": heads, "kv_heads": 8,
        "head_dim": 128, "ffn_dim": ffn, "rope": rope.Rope(theta=500_000.0, scaling=scaling),
    } | kwargs  # fmt: skip


def mixtral(**kwargs) -> dict:
    """Mixtral 8x7B (config.json)."""
    return {
        "vocab_size": 32_000, "dim": 4096, "layers": 32, "heads": 32, "kv_heads": 8,
        "head_dim": 128, "ffn_dim": 14_336,
        "experts": architecture.Experts(count=8, per_token=2, ffn_dim=14_336, normalized=True),
    } | kwargs  # fmt: skip


RUNS = {
    "llama2-70b-v5p": Run(
        slice="v5p-512", rows=2, tokens=4096, model=llama2(remat="save_attention"),
        published=65.4, tokens_per_second=692, source=V5P,
    ),
    "llama3.1-8b-v6e": Run(
        slice="v6e-256", rows=4, tokens=8192, model=llama3("8b", remat="offload_attention"),
        published=45.5, tokens_per_second=7207, source=TRILLIUM,
    ),
    "llama2-70b-v6e": Run(
        slice="v6e-256", rows=2, tokens=4096, model=llama2(remat="offload_attention"),
        published=43.8, tokens_per_second=900, source=TRILLIUM,
    ),
    "llama3.1-70b-v6e": Run(
        slice="v6e-256", rows=4, tokens=8192, model=llama3("70b", remat="offload_attention"),
        published=50.3, tokens_per_second=960, source=TRILLIUM,
    ),
    "llama3.1-405b-v6e": Run(
        slice="v6e-256", rows=1, tokens=8192, model=llama3("405b", remat="offload_inputs"),
        state_memory="pinned_host", published=38.55, tokens_per_second=123, source=TRILLIUM,
    ),
    "mixtral-8x7b-v6e": Run(
        slice="v6e-256", rows=12, tokens=4096, model=mixtral(remat="full"), microbatches=2,
        published=35.2, tokens_per_second=3899, source=TRILLIUM,
    ),
    "mixtral-8x7b-v5p": Run(
        slice="v5p-256", rows=36, tokens=4096, microbatches=3,
        model=mixtral(remat="full", param_dtype="bfloat16"),
        published=52.6, tokens_per_second=2909, source=f"{_TABLE}, and tpu-recipes",
    ),
}  # fmt: skip


def planned(run: Run) -> recipe.Train:
    """The same work as a recipe: all chips along fsdp, float32 state, bfloat16 products."""
    one = slices.parse(run.slice)
    rows = run.rows * one.chips
    shape = {
        "context_tokens": run.tokens, "loss_chunk_tokens": 1024, "compute_dtype": "bfloat16",
        "rope": rope.Rope(theta=10_000.0, scaling=rope.RopeScaling(kind="none")),
    }  # fmt: skip
    return tiny_run.train(
        NOWHERE,
        model=tiny_run.model(**(shape | run.model)),
        data=tiny_run.data(NOWHERE, row_tokens=run.tokens, batch_rows=rows),
        train_tokens=10 * rows * run.tokens,
        microbatches=run.microbatches,
        state_memory=run.state_memory,
        loss=step_lib.Loss(z_loss_weight=0.0),
        mesh=sharding.Mesh(data=1, fsdp=-1, tensor=1),
    )


def row(name: str, run: Run, made: compiler.Compiler) -> dict:
    """What the plan says, beside what was published."""
    one, config = slices.parse(run.slice), planned(run)
    dense = config.model.experts is None
    options = flags.as_compiler_options(flags.flags(one.chip.name, dense=dense))
    (rows,) = program.updates(config)
    compiled = made.compile(config, one, rows, options, name)
    step = predict.step(config, one, rows, 1, compiled, analysis.Knobs())
    found = {
        "run": name, "slice": run.slice, "published_percent": run.published,
        "rows_per_chip": run.rows, "row_tokens": run.tokens,
        "microbatches": run.microbatches, "remat": config.model.remat,
        "source": run.source, "outcome": step.outcome, "said": step.said,
        "versions": made.versions,
    }  # fmt: skip
    if step.found is None:
        return found
    planned_tokens = run.rows * run.tokens / step.found.step_seconds
    ratio = planned_tokens / run.tokens_per_second
    return found | {
        "published_tokens_per_second": run.tokens_per_second,
        "predicted_tokens_per_second": planned_tokens,
        "predicted_percent": ratio * run.published,
        "off_percent": 100 * (ratio - 1),
        "step_seconds": step.found.step_seconds,
        "parts": dict(step.found.parts),
        "peak_bytes": step.found.peak_bytes,
    }


def line(found: dict) -> str:
    """One row of the table."""
    head = f"{found['run']:18} {found['slice']:8} published {found['published_percent']:5.1f} %"
    if "predicted_percent" not in found:
        return f"{head}  {found['outcome']}: {found['said']}"
    return (
        f"{head}  planned {found['predicted_percent']:5.1f} %  off {found['off_percent']:+6.1f} %  "
        f"step {found['step_seconds']:6.2f} s  peak {found['peak_bytes'] / 1e9:5.1f} GB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", action="append", choices=RUNS, help="some of the runs")
    parser.add_argument("--cache", help="folder of compiled steps; the user's own otherwise")
    args = parser.parse_args()
    rows = []
    with compiler.Compiler(args.cache) as made:
        for name in args.only or RUNS:
            rows.append(row(name, RUNS[name], made))
            print(line(rows[-1]), flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
