# SPDX-License-Identifier: Apache-2.0
"""What a plan.json holds: a stage that fits, one that does not, a search."""

FOUND = {
    "peak_bytes": 12_000_000_000,
    "memory": {"parameters": 4_000_000_000, "gradients": 7_990_000_000, "batch": 10_000_000},
    "largest": [["parameters", "state/params/embed", 2_000_000_000]],
    "timeline": [[0, 4_000_000_000], [50, 11_000_000_000], [90, 4_000_000_000]],
    "positions": 100, "peak_position": 50, "peak_op_name": "mlp/dot_general", "host_bytes": 0,
    "step_seconds": 2.0, "parts": {"matrix": 1.5, "vector": 0.4, "collectives": 0.1, "host": 0.0},
    "collectives": {
        "fsdp": {
            "bytes_sent": 3e9, "seconds": 0.3, "hidden_seconds": 0.2, "exposed_seconds": 0.1,
        },
    },
    "hidden_host_seconds": 0.0, "host_transfer_bytes": 0.0, "matrix_flops": 3e14,
    "kernel_flops": 0.0, "notes": {},
    "roofline": [
        {"label": "mlp/dot_general", "part": "matrix", "seconds": 1.0, "flops": 1.5e14,
         "hbm_bytes": 3e11},
        {"label": "norm", "part": "vector", "seconds": 0.2, "flops": 0.0, "hbm_bytes": 1e11},
    ],
}  # fmt: skip
FITS = {
    "batch_rows": 64, "row_tokens": 8192, "microbatches": 2, "remat": "full",
    "mesh": {"data": 2, "fsdp": 32}, "updates": 10, "outcome": "fits", "said": None,
    "missing_bytes": None, "found": FOUND, "model_flops": 3e14, "tokens": 524_288,
    "tokens_per_second": 262_144.0, "utilisation": 0.4567, "compiling_seconds": 30.0,
    "was_kept": False,
}  # fmt: skip
LACKS = FITS | {
    "outcome": "out of memory", "said": "Used 17.31G of 15.75G hbm", "found": None,
    "missing_bytes": 1_500_000_000, "tokens_per_second": None, "utilisation": None,
}  # fmt: skip
_STAGE = {
    "slice": "v5e-64", "chips": 64, "tokens": 5_242_880, "updates": 10, "seconds": 20.0,
    "chip_hours": 0.3556, "cost_usd": 0.43, "checkpoint_bytes": 96_000_000_000,
    "checkpoint_seconds": 120.0,
}  # fmt: skip
_SETTING = {
    "mesh": {"data": 1, "fsdp": 64, "tensor": 1}, "microbatches": 1, "remat": "full",
    "state_sharding": "as_params", "state_memory": "device", "fsdp_sums": "by_dimension",
}  # fmt: skip
PLAN = {
    "midjax": "0.1.0",
    "is": "a prediction by the TPU's compiler and a model of the chip; nothing was measured",
    "error": "Set beside published runs it is off by 9 %.",
    "versions": {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42.1"},
    "assumptions": {"kernel_efficiency": 0.5},
    "slices": {
        "v5e-64": {
            "chips": 64, "hosts": 16, "torus": "8x8", "flops_per_second": 197e12,
            "hbm_bytes_per_second": 0.819e12, "usable_hbm_bytes": 16_911_433_728,
            "usd_per_chip_hour": 1.2,
        },
    },
    "stages": [
        _STAGE | {"name": "midtrain", "steps": [FITS]},
        _STAGE | {"name": "extend", "steps": [LACKS], "seconds": None, "chip_hours": None,
                  "cost_usd": None, "checkpoint_seconds": None},
    ],
    "searches": [
        {
            "stage": "midtrain", "slice": "v5e-64", "size": 9, "left_out": {"why": 7},
            "rows": [
                {"setting": _SETTING, "overrides": "--gin.Mesh.fsdp=64", "step": FITS,
                 "on_front": True},
                {"setting": _SETTING, "overrides": "--gin.not=shown", "step": LACKS,
                 "on_front": False},
            ],
        },
    ],
}  # fmt: skip
