# SPDX-License-Identifier: Apache-2.0
"""The work that tpu_speed.py compares: the same model, rows, slice and dtypes for both systems.

Both train all parameters in float32 with AdamW's moments in float32, and multiply in bfloat16. What
differs is each system's own: its remat policy and kernels, and flags of the compiler.
"""

import dataclasses
import pathlib

import tiny_run

from midjax.hardware import flags
from midjax.model import rope, sharding, torus
from midjax.train import recipe
from midjax.train import step as step_lib

NOWHERE = pathlib.Path("/nowhere")
# MaxText's published recipes for v5p, and the flag that its best time here needs.
PUBLISHED = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
LARGE_VMEM = {**PUBLISHED, "xla_tpu_scoped_vmem_limit_kib": "98304"}
# Of its recipes for v6e: no product becomes a ring of small ones.
_NO_RINGS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def _ours(chip: str) -> dict[str, str]:
    """What our runs have on the chip."""
    return flags.as_compiler_options(flags.flags(chip))


def _with_rings(chip: str) -> dict[str, str]:
    """The same, and the compiler's own choice of rings."""
    return {name: value for name, value in _ours(chip).items() if name not in _NO_RINGS}


PLAIN = rope.Rope(theta=10_000.0, scaling=rope.RopeScaling(kind="none"))
LLAMA_3_1 = rope.Rope(
    theta=500_000.0,
    scaling=rope.RopeScaling(
        kind="llama3",
        factor=8.0,
        original_context_tokens=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    ),
)
EQUAL_OR_LEANER = ((0.93, 1.0), (1.0, 0.75))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row of work.

    Attributes:
      slice: such as "v5p-128".
      rows: of the whole batch.
      tokens: of a row.
      model: fields of `TransformerConfig`.
      mesh: of both.
      maxtext: its arguments.
      maxtext_flags: name -> flags of the compiler; the fastest of them is the peer.
      targets: (most of the peer's time, most of its memory), one of which must hold.
      most_hardware_flops: of ours over the model's own.
      microbatches, fsdp_sums: of ours.
    """

    slice: str
    rows: int
    tokens: int
    model: dict
    mesh: sharding.Mesh
    maxtext: tuple[str, ...]
    maxtext_flags: dict[str, dict[str, str]]
    targets: tuple[tuple[float, float], ...] = EQUAL_OR_LEANER
    most_hardware_flops: float = 1.08
    microbatches: int = 1
    fsdp_sums: torus.Sums = "by_dimension"

    def recipe(self) -> recipe.Train:
        """Ours, as `midjax train` would be given it."""
        common = {
            "context_tokens": self.tokens,
            "compute_dtype": "bfloat16",
            "loss_chunk_tokens": min(self.tokens, 2048),
            "attention_kernel": "splash",
        }
        return tiny_run.train(
            NOWHERE,
            model=tiny_run.model(**(common | self.model)),
            data=tiny_run.data(NOWHERE, row_tokens=self.tokens, batch_rows=self.rows),
            train_tokens=10 * self.rows * self.tokens,
            loss=step_lib.Loss(z_loss_weight=0.0),
            mesh=self.mesh,
            microbatches=self.microbatches,
            fsdp_sums=self.fsdp_sums,
        )

    def peer_arguments(self, chips: int) -> list[str]:
        """MaxText's, but for its flags."""
        return [
            f"compile_topology={self.slice}",
            f"per_device_batch_size={self.rows / chips}",
            f"max_target_length={self.tokens}",
            "attention=flash",
            "opt_type=adamw",
            *self.maxtext,
        ]


def _fsdp(context: int = 1) -> sharding.Mesh:
    return sharding.Mesh(data=1, fsdp=-1, tensor=1, context=context)


def _llama(**kwargs) -> dict:
    return {"head_dim": 128, "kv_heads": 8, "rope": PLAIN} | kwargs


# A small Llama that both can build: 1.1 G parameters.
_ONE_B = {"vocab_size": 32_768, "dim": 2048, "layers": 16, "heads": 16, "ffn_dim": 8192}
_MAXTEXT_ONE_B = (
    "model_name=default", "decoder_block=llama2", "base_emb_dim=2048", "base_mlp_dim=8192",
    "base_num_decoder_layers=16", "base_num_query_heads=16", "base_num_kv_heads=8",
    "head_dim=128", "vocab_size=32768", "logits_via_embedding=False",
    "mlp_activations=['silu','linear']", "normalization_layer_epsilon=1e-5",
    "ici_fsdp_parallelism=16",
)  # fmt: skip
_70B = {"vocab_size": 32_000, "dim": 8192, "layers": 80, "heads": 64, "ffn_dim": 28_672}
_MAXTEXT_70B = (
    "model_name=llama2-70b", "remat_policy=save_dot_except_mlpwi", "ici_fsdp_parallelism=256",
)  # fmt: skip
_8B = {
    "vocab_size": 128_256, "dim": 4096, "layers": 32, "heads": 32, "ffn_dim": 14_336,
    "rope": LLAMA_3_1,
}  # fmt: skip

CASES = {
    "1B on v5e-16": Case(
        slice="v5e-16", rows=32, tokens=2048, mesh=_fsdp(),
        model=_llama(**_ONE_B, remat="save_projections", loss_chunk_tokens=512),
        maxtext=(*_MAXTEXT_ONE_B, "remat_policy=minimal"),
        maxtext_flags={
            "published": PUBLISHED, "ours": _ours("v5e"), "no rings": PUBLISHED | _NO_RINGS,
        },
    ),
    "Llama-2-7B on v5p-128": Case(
        slice="v5p-128", rows=256, tokens=4096, mesh=_fsdp(),
        model=_llama(vocab_size=32_000, dim=4096, layers=32, heads=32, kv_heads=32,
                     ffn_dim=11_008, remat="save_projections"),
        maxtext=("model_name=llama2-7b", "remat_policy=minimal", "ici_fsdp_parallelism=64"),
        maxtext_flags={
            "published": PUBLISHED, "large VMEM": LARGE_VMEM, "ours": _ours("v5p"),
            "ours, rings": _with_rings("v5p"),
        },
    ),
    "Llama-2-70B on v5p-512": Case(
        slice="v5p-512", rows=512, tokens=4096, mesh=_fsdp(),
        model=_llama(**_70B, remat="save_attention"),
        maxtext=_MAXTEXT_70B,
        maxtext_flags={
            "published": PUBLISHED, "large VMEM": LARGE_VMEM, "ours": _ours("v5p"),
            "ours, rings": _with_rings("v5p"),
        },
    ),
    "Llama-2-70B on v5p-512, for all of its memory": Case(
        slice="v5p-512", rows=512, tokens=4096, mesh=_fsdp(),
        model=_llama(**_70B, remat="save_projections"),
        maxtext=_MAXTEXT_70B,
        maxtext_flags={
            "published": PUBLISHED, "large VMEM": LARGE_VMEM, "ours": _ours("v5p"),
            "ours, rings": _with_rings("v5p"),
        },
        targets=((0.93, float("inf")),),
        microbatches=2,
        fsdp_sums="at_once",
    ),
    "Llama-3.1-8B on v6e-64": Case(
        slice="v6e-64", rows=64, tokens=8192, mesh=_fsdp(),
        model=_llama(**_8B, remat="save_projections", loss_chunk_tokens=2048),
        maxtext=("model_name=llama3.1-8b", "remat_policy=minimal", "ici_fsdp_parallelism=64"),
        maxtext_flags={
            "large VMEM": LARGE_VMEM, "ours": _ours("v6e"), "ours, rings": _with_rings("v6e"),
        },
    ),
    "Llama-3.1-8B at 131,072 tokens on v5p-128": Case(
        slice="v5p-128", rows=4, tokens=131_072, mesh=_fsdp(context=16),
        model=_llama(**_8B, remat="save_projections", loss_chunk_tokens=65_536),
        maxtext=("model_name=llama3.1-8b", "remat_policy=full", "ici_fsdp_parallelism=4",
                 "ici_context_parallelism=16", "context_parallel_load_balance=True"),
        maxtext_flags={
            "large VMEM": LARGE_VMEM, "ours": _ours("v5p"), "ours, rings": _with_rings("v5p"),
        },
        targets=((0.8, float("inf")),),
    ),
}  # fmt: skip
