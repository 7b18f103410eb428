# SPDX-License-Identifier: Apache-2.0
"""MaxText's train step for TPUs that are not there, as its own train_compile makes it.

Runs in an environment that has MaxText 0.2.5 and nothing of midjax:

    python maxtext_program.py --out FOLDER --options '{"xla_...": "true"}' \\
      compile_topology=v5p-128 model_name=...

Writes FOLDER/program.txt, the scheduled program as libtpu dumps it (as midjax reads its own), and
FOLDER/record.json: what the compiler says of memory, seconds of lowering and compiling, versions,
and MaxText's own count of model FLOPs.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "DECOUPLE_GCLOUD": "TRUE",
}

import jax

# What every case shares: no data, no checkpoints, float32 parameters and moments as by default.
COMMON = (
    "compile_topology_num_slices=1",
    "dataset_type=synthetic",
    "enable_checkpointing=False",
    "skip_jax_distributed_system=True",
    "run_name=bench",
    "base_output_directory=/nowhere",
    "hardware=tpu",
)


def lowered(arguments: list[str]):
    """(the lowered step, MaxText's config, the mesh): the calls of its train_compile.main."""
    from flax.core import spmd
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, sharding

    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    config = pyconfig.initialize(["train_compile", *COMMON, *arguments])
    train_compile.validate_config(config)
    mesh = train_compile.get_topology_mesh(config)
    inputs, named, state_shardings, _, model = train_compile.get_shaped_inputs(mesh, config)
    param_shardings, state_shardings = sharding.maybe_update_params_sharding_with_opt(
        config, state_shardings
    )
    into = sharding.build_zero1_input_state_mesh_shardings(config, state_shardings, param_shardings)
    data = sharding.get_input_data_sharding(config, mesh)
    step, in_shardings, out_shardings, static, donated = (
        maxtext_utils.get_functional_train_with_signature(
            train.train_step, data, into, model, config, param_shardings
        )
    )
    with jax.set_mesh(mesh), spmd.logical_axis_rules(config.logical_axis_rules):
        jitted = jax.jit(
            step,
            in_shardings=in_shardings,
            out_shardings=out_shardings,
            static_argnums=static,
            donate_argnums=donated,
        )
        return jitted.lower(*inputs, **named), config, mesh


def _largest(folder: str, pattern: str) -> str:
    """The text of the step: small programs are dumped beside it."""
    found = max(pathlib.Path(folder).glob(pattern), key=lambda path: path.stat().st_size)
    return found.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--options", default="{}", help="flags of the compiler, as JSON")
    args, arguments = parser.parse_known_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    from maxtext.trainers.pre_train import train_compile  # noqa: F401  not part of lowering

    began, cpu_began = time.monotonic(), time.process_time()
    step, config, mesh = lowered(arguments)
    between = time.monotonic()
    from maxtext.utils import maxtext_utils

    record = {
        "arguments": arguments,
        "lowering_seconds": between - began,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "places": [(getattr(d, "slice_index", 0), list(d.coords)) for d in mesh.devices.flat],
        "versions": {n: importlib.metadata.version(n) for n in ("maxtext", "jax", "libtpu")},
        "model_tflops": float(
            maxtext_utils.calculate_tflops_training_per_device(config, log=False)[0]
        ),
    }
    dumped = tempfile.TemporaryDirectory(prefix="maxtext-")
    try:
        compiled = step.compile(
            compiler_options={
                **json.loads(args.options),
                "xla_tpu_spmd_rng_bit_generator_unsafe": "true",
                "xla_dump_to": dumped.name,
            }
        )
        (out / "program.txt").write_text(_largest(dumped.name, "*.after_codegen.txt"), "utf-8")
    except jax.errors.JaxRuntimeError as error:
        record |= {"outcome": "refused", "said": str(error).strip().splitlines()[0][:500]}
    else:
        memory = compiled.memory_analysis()
        record |= {
            "outcome": "compiled",
            "peak_bytes": memory.peak_memory_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
        }
    record["compiling_seconds"] = time.monotonic() - between
    record["cpu_seconds"] = time.process_time() - cpu_began
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
