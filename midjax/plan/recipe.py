# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `plan`: which recipes, on which slices, at which prices."""

import dataclasses

from midjax.hardware import chips, flags
from midjax.hardware import slices as slices_lib
from midjax.model import remat as remat_lib
from midjax.model import torus
from midjax.train import placement
from midjax.train import recipe as train_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What may be chosen for a run without changing what it computes.

    Attributes:
      axes: mesh axes that may be larger than 1; each must divide what it splits.
      microbatches: parts in which a batch may be computed; None is every power of two that leaves
        each device a row.
      remat: policies of the backward pass.
      state_sharding, state_memory: of the optimizer's state.
      fsdp_sums: how gradients are summed, where only `data`, `fsdp` and `context` split anything.
        The search has the first of them, and then the fastest setting with each of the others.
      most_compiles: programs compiled per stage and slice, whole, in the order of a rough model
        that is never reported; the fastest with other `fsdp_sums` comes on top.
      exhaustive: compiles the whole grid, but for what cannot fit: for those who want to know what
        was missed. Hours.
    """

    axes: tuple[str, ...] = ("data", "fsdp", "tensor", "context", "expert")
    microbatches: tuple[int, ...] | None = None
    remat: tuple[remat_lib.Remat, ...] = (
        "none",
        "dots",
        "full",
        "save_attention",
        "save_projections",
        "offload_inputs",
        "offload_attention",
        "offload_projections",
        "offload_all_but_mlp",
    )
    state_sharding: tuple[placement.Sharding, ...] = ("as_params",)
    state_memory: tuple[placement.Memory, ...] = ("device",)
    fsdp_sums: tuple[torus.Sums, ...] = ("by_dimension", "at_once")
    most_compiles: int = 16
    exhaustive: bool = False

    def __post_init__(self) -> None:
        known = ("data", "fsdp", "tensor", "context", "expert")
        if unknown := sorted(set(self.axes) - set(known)):
            raise ValueError(f"Search.axes names {unknown}; allowed: {', '.join(known)}.")
        for name in ("axes", "remat", "state_sharding", "state_memory", "fsdp_sums"):
            if not getattr(self, name):
                raise ValueError(f"Search.{name} is empty: name at least one.")
        if self.most_compiles < 1:
            raise ValueError(f"Search.most_compiles must be 1 or more, got {self.most_compiles}.")
        if self.microbatches is not None and min(self.microbatches, default=0) < 1:
            raise ValueError(
                f"Search.microbatches holds numbers of 1 or more, got {self.microbatches}; None "
                "tries all powers of two that fit."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that nobody has paid for yet.

    Attributes:
      train: its first stage, a recipe of `train` as it stands.
      slices: TPUs to plan for: "v5e-64", "2xv5p-128"; see midjax/hardware/slices.py.
      later: files of recipes of `train`: the stages after the first.
      prices: USD per chip and hour: of every chip, or by chip, {"v5e": 1.2}; None leaves cost out.
      checkpoint_gb_per_second: what the whole run writes to its storage; None leaves the time of a
        save out.
      compiler_flags: more flags of the TPU's compiler, `--xla_...=value`, or other values for those
        of midjax/hardware/flags.py, as `Launch.compiler_flags`.
      kernel_efficiency: share of the chip's peak that attention kernels are taken to reach.
      link_efficiency: share of a link's rate that collectives are taken to reach.
      search: what to choose; None plans the recipes as they are.
      cache: folder of compiled steps; None is $XDG_CACHE_HOME/midjax/plan or ~/.cache/midjax/plan.
      output: folder of plan.json and plan.html.
    """

    train: train_lib.Train
    slices: tuple[str, ...]
    later: tuple[str, ...] = ()
    prices: float | dict[str, float] | None = None
    checkpoint_gb_per_second: float | None = None
    compiler_flags: str = ""
    kernel_efficiency: float | None = None
    link_efficiency: float | None = None
    search: Search | None = None
    cache: str | None = None
    output: str = "build/plan"

    def __post_init__(self) -> None:
        if not self.slices:
            raise ValueError("Plan.slices is empty: name at least one, such as --slice=v5e-64.")
        if len(set(self.slices)) < len(self.slices):
            raise ValueError(f"Plan.slices names a slice twice: {self.slices}.")
        for name in self.slices:
            self.options(slices_lib.parse(name), self.train)
        self._check_prices()
        for name in ("checkpoint_gb_per_second", "kernel_efficiency", "link_efficiency"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Plan.{name} must be over 0, got {value}.")
        for name in ("kernel_efficiency", "link_efficiency"):
            value = getattr(self, name)
            if value is not None and value > 1:
                raise ValueError(f"Plan.{name} is a share of the peak, at most 1, got {value}.")

    def _check_prices(self) -> None:
        if isinstance(self.prices, dict):
            if unknown := sorted(set(self.prices) - set(chips.CHIPS)):
                raise ValueError(
                    f"Plan.prices names {unknown}; prices are by chip: {', '.join(chips.CHIPS)}."
                )
        found = self.prices.values() if isinstance(self.prices, dict) else (self.prices,)
        if any(price is not None and price <= 0 for price in found):
            raise ValueError(f"Plan.prices are USD per chip and hour, over 0; got {self.prices}.")

    def price(self, chip: str) -> float | None:
        """USD per chip and hour; None where none is known."""
        return self.prices.get(chip) if isinstance(self.prices, dict) else self.prices

    def options(self, slice_: slices_lib.Slice, stage: train_lib.Train) -> dict[str, str]:
        """What the compiler is told for a stage on a slice, which is what `launch` tells it.

        Raises:
          FlagError: `compiler_flags` is no list of flags, or has one twice.
        """
        table = flags.flags(slice_.chip.name, dense=stage.model.experts is None)
        return flags.as_compiler_options(flags.merge(table, self.compiler_flags))
