# SPDX-License-Identifier: Apache-2.0
"""Flags of the TPU's compiler, by chip, as data with reasons.

The same table serves a run (`LIBTPU_INIT_ARGS`) and a compilation without a TPU
(`compiler_options`). A flag is here because somebody's published runs have it, or because the
compiler's own estimate says so; none was measured on hardware by midjax. libtpu 0.0.42.1, 0.0.50.1
and 0.0.52 take them, chip by chip, all together (tests/hardware/flags_test.py asks the one that is
installed); other versions need not know all of them.
"""

import dataclasses
from collections.abc import Iterable

from midjax.hardware import chips

_PREFIXES = ("--xla", "--tpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag.

    Attributes:
      name: without its dashes.
      value: as it is written.
      why: what it does for a training step.
      source: who says so.
      start_only: libtpu takes it when it starts; it is no option of one program's compilation.
    """

    name: str
    value: str
    why: str
    source: str
    start_only: bool = False

    @property
    def text(self) -> str:
        """`--name=value`."""
        return f"--{self.name}={self.value}"


_LIBRARY = "MaxText, benchmarks/xla_flags_library.py"


def _on(name: str, why: str, source: str = _LIBRARY, value: str = "true") -> Flag:
    return Flag(name=name, value=value, why=why, source=source)


# All-gathers of FSDP run beside the products that do not need them yet, and products stay whole.
_EVERY_CHIP = (
    _on(
        "xla_tpu_enable_async_collective_fusion",
        "collectives run beside computation, in the same fusion",
    ),
    _on(
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "one collective may span several fusions, when one is too short to hide it",
    ),
    _on(
        "xla_tpu_overlap_compute_collective_tc",
        "the TensorCore computes while a collective is under way",
    ),
    _on("xla_enable_async_all_gather", "all-gathers are started early and waited for late"),
    # Of use where `tensor` splits matrices: what FSDP's own code gathers is no part of a product.
    _on(
        "xla_jf_spmd_threshold_for_windowed_einsum_mib",
        "no product becomes a ring of small ones, for which each chip sends a part on: fsdp 32 x "
        "tensor 2 of an 8B step took 7,239 ms on v5e-64 with rings and 4,284 without, and fsdp 8 x "
        "tensor 2 on v5p-32 6,054 and 5,288, by the compiler's estimate",
        "MaxText's recipes for v6e, benchmarks/xla_flags_library.py",
        value="1000000",
    ),
)
# libtpu 0.0.52 refuses it, with asynchronous all-gathers, on every other chip: "not supported ...
# might lead to ... incorrect results, hang".
_FUSED_GATHERS = _on(
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "all-gathers too: FSDP gathers each layer's parameters",
)
_DATA_PARALLEL = (
    _on(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "the all-reduce of gradients over copies of the model overlaps the backward pass",
    ),
    _on(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "and does so for gradients of different sizes",
    ),
)
_MEGACORE = (
    _on(
        "xla_tpu_megacore_fusion_allow_ags",
        "fusions over a chip's two cores hold no all-gathers, which would serialize them",
        value="false",
    ),
    _on("xla_enable_async_collective_permute", "permutes of ring steps are asynchronous"),
    _on(
        "xla_tpu_enable_ag_backward_pipelining",
        "the backward pass's all-gather of a layer starts in the layer before it",
    ),
)


# Gathers and sums run on the chip's sparse cores, beside what the TensorCore does.
_SPARSE_CORES = (
    *(
        _on(
            f"xla_tpu_enable_async_collective_fusion_fuse_{kind}",
            "not in a fusion of the TensorCore: a collective runs either there or on sparse cores",
            value="false",
        )
        for kind in ("all_gather", "all_reduce", "reduce_scatter")
    ),
    *(
        _on(
            f"xla_tpu_enable_sparse_core_collective_offload_{kind}",
            "on the sparse cores, beside computation: on v6e-64 an 8B step took 1,205 ms with the "
            "three of them and 1,378 without, by the compiler's estimate when all three were set",
        )
        for kind in ("all_gather", "all_reduce", "reduce_scatter")
    ),
    _on("xla_tpu_use_tc_device_shape_on_sc", "what goes with collectives on sparse cores"),
    _on(
        "xla_sc_enable_instruction_fusion",
        "what goes with collectives on sparse cores",
        value="false",
    ),
    _on("xla_sc_disable_megacore_partitioning", "what goes with collectives on sparse cores"),
    Flag(
        name="xla_sc_disjoint_spmem",
        value="false",
        why="what goes with collectives on sparse cores",
        source=_LIBRARY,
        start_only=True,
    ),
    _on(
        "xla_jf_crs_combiner_threshold_in_bytes",
        "a gradient's all-reduce (over copies of the model, and where more than tokens are split) "
        "begins when it can, not when the last of its layer is there",
        "the compiler's estimate of a 1B step on v6e-16 with all-reduces: 112 ms instead of 121",
        value="0",
    ),
)


def _vmem(kib: int, source: str) -> Flag:
    return Flag(
        name="xla_tpu_scoped_vmem_limit_kib",
        value=str(kib),
        why="a fusion may use more of VMEM: larger tiles, and products nearer to the peak",
        source=source,
    )


_VMEM_V6E = "MaxText, benchmarks/xla_flags_library.py; Levanter's documentation of v6e"
_VMEM_V5P = "the compiler's estimate of a 7B step on v5p-128: 2,299 ms instead of 2,860"
# By default it is 16,384, where the backward pass of attention in two rows of 8,192 tokens a chip
# has no room. 65,536 takes another 3 % off the step, and more than twice the compiling.
_VMEM_V5E = "the compiler's estimate of an 8B step on v5e-64: 3,770 ms instead of 4,216"

# chip -> (flags of dense models, flags of mixtures of experts).
_TABLE: dict[str, tuple[tuple[Flag, ...], tuple[Flag, ...]]] = {
    "v4": (_EVERY_CHIP, _EVERY_CHIP),
    "v5e": ((*_EVERY_CHIP, _FUSED_GATHERS, *_DATA_PARALLEL, _vmem(32768, _VMEM_V5E)),) * 2,
    "v5p": ((*_EVERY_CHIP, *_SPARSE_CORES, *_DATA_PARALLEL, *_MEGACORE, _vmem(98304, _VMEM_V5P)),)
    * 2,
    "v6e": (
        (*_EVERY_CHIP, *_SPARSE_CORES, _vmem(98304, _VMEM_V6E)),
        (*_EVERY_CHIP, *_SPARSE_CORES, _vmem(81920, _VMEM_V6E)),
    ),
}


class FlagError(ValueError):
    """Flags that libtpu would refuse, or take for something else than was meant."""


def flags(chip_name: str, dense: bool = True) -> tuple[Flag, ...]:
    """The flags of a chip.

    Args:
      chip_name: "v4", "v5e", "v5p" or "v6e".
      dense: False for a mixture of experts, whose kernels need some of VMEM.

    Raises:
      FlagError: no such chip.
    """
    if chip_name not in _TABLE:
        raise FlagError(
            f"No flags for the chip {chip_name!r}; there are: {', '.join(chips.CHIPS)}."
        )
    return _TABLE[chip_name][0 if dense else 1]


def as_libtpu_init_args(given: Iterable[Flag]) -> str:
    """The value of LIBTPU_INIT_ARGS."""
    return " ".join(flag.text for flag in given)


def as_compiler_options(given: Iterable[Flag]) -> dict[str, str]:
    """What `lowered.compile(compiler_options=...)` takes: names without dashes."""
    return {flag.name: flag.value for flag in given if not flag.start_only}


def parse(text: str) -> dict[str, str]:
    """Flags as they are written for LIBTPU_INIT_ARGS -> values by name, without dashes.

    A flag without a value is "true", as it is for libtpu.

    Raises:
      FlagError: something else than a flag of the compiler or of libtpu; a flag given twice.
    """
    tokens = text.split()
    for token in tokens:
        if not token.startswith(_PREFIXES):
            raise FlagError(
                f"{token!r} is no flag of the TPU's compiler: those begin with "
                f"{' or '.join(_PREFIXES)}. Environment variables and JAX's own options are set "
                "elsewhere; libtpu would fail, or ignore it in silence."
            )
    return once(tokens)


def once(tokens: Iterable[str]) -> dict[str, str]:
    """--NAME=VALUE each -> values by name, without dashes.

    Raises:
      FlagError: a flag is given twice.
    """
    found: dict[str, str] = {}
    for token in tokens:
        name, has_value, value = token.removeprefix("--").partition("=")
        value = value if has_value else "true"
        if name in found:
            raise FlagError(
                f"--{name} is given twice, as {found[name]} and as {value}: libtpu takes the last "
                "one in silence. Keep one."
                if value != found[name]
                else f"--{name}={value} is given twice. Keep one."
            )
        found[name] = value
    return found


def merge(
    table: Iterable[Flag], extra: str, why: str = "asked for by the recipe"
) -> tuple[Flag, ...]:
    """The table's flags with those of `extra` in their place or after them.

    Raises:
      FlagError: `extra` is no list of flags; it repeats a value that the table has already.
    """
    asked = parse(extra)
    by_name = {flag.name: flag for flag in table}
    for name, value in asked.items():
        if name in by_name and by_name[name].value == value:
            raise FlagError(
                f"--{name}={value} is given twice: the table of this chip has it already. "
                "Leave it out."
            )
        start_only = name in by_name and by_name[name].start_only
        by_name[name] = Flag(
            name=name, value=value, why=why, source="the recipe", start_only=start_only
        )
    return tuple(by_name.values())
