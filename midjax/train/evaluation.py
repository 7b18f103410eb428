# SPDX-License-Identifier: Apache-2.0
"""What a recipe says about evaluations inside of a run; `evaluate` makes them."""

import dataclasses

from midjax.evals import compare
from midjax.evals import recipe as eval_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(eval_recipe.Parts):
    """What is measured, see `evals.recipe.Parts`, every so many updates and after the last one.

    A run that starts from a checkpoint is measured before its first update too.

    Attributes:
      name: of its results.
      every_steps: between two measurements.
      parent: path of a result of `midjax eval` that `comparison.gates` compare with; None is the
        run's own start, under the recipe's model. Give it where that model is another one than the
        parent's, as where the context is extended.
      comparison: how, and how much may be lost.
      tokenizer: folder with `tokenizer.json`, the run's own.
    """

    name: str
    every_steps: int
    tokenizer: str
    parent: str | None = None
    comparison: compare.Comparison = dataclasses.field(default_factory=compare.Comparison)

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"Evaluation.every_steps must be 1 or more, got {self.every_steps}.")
        if self.parent is not None and not self.comparison.gates:
            raise ValueError(
                f"Evaluation.parent = {self.parent!r} is what gates compare with, and "
                "Comparison.gates is empty. Give a gate, or leave the parent out."
            )
