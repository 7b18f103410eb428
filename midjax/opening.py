# SPDX-License-Identifier: Apache-2.0
"""A model to measure, from a run or a Hugging Face folder: what it is first, its parameters later.

What is asked of it can so be checked before they are read.
"""

import dataclasses
from typing import Any

import jax

from midjax import verbs
from midjax.model import architecture, hf, sharding, transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint, of which only JSON was read.

    Attributes:
      model: its architecture.
      step: completed updates; 0 of a Hugging Face folder.
      tokenizer_hash: of the tokenizer it was trained with; None if that is not known.
      run, facts, weights: of a run: which parameters.
      folder: of a Hugging Face folder.
    """

    model: architecture.TransformerConfig
    step: int = 0
    tokenizer_hash: str | None = None
    run: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    weights: str = "params"
    folder: str = ""

    def params(self, mesh: jax.sharding.Mesh) -> Any:
        """The parameters, sharded over a mesh."""
        if self.run:
            return verbs.params_of(self.model, self.facts, self.run, self.weights, mesh)
        abstract = transformer.abstract(self.model)
        places = sharding.tree(mesh, transformer.logical_axes(self.model), abstract)
        targets = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            abstract,
            places,
        )
        with jax.set_mesh(mesh):
            return hf.load(self.folder, targets=targets)[1]


def model(
    *,
    run: str | None = None,
    folder: str | None = None,
    step: int | None = None,
    weights: str = "params",
    compute_dtype: architecture.Dtype | None = None,
) -> Opened:
    """Looks at a run's checkpoint, or at a Hugging Face folder; just one of them is given.

    Args:
      run, step, weights: a run, completed updates (None: the newest), "params" or "ema".
      folder: a Hugging Face folder.
      compute_dtype: of matrix products; None is the run's, and float32 for a folder.

    Raises:
      CheckpointError, FileNotFoundError: it is not there.
      ValueError: it is not supported.
    """
    changes: dict[str, Any] = {} if compute_dtype is None else {"compute_dtype": compute_dtype}
    if folder:
        assert not run
        return Opened(model=dataclasses.replace(hf.read_config(folder), **changes), folder=folder)
    assert run
    found, step, facts = verbs.checkpoint_of(run, step)
    return Opened(
        model=dataclasses.replace(found, **changes),
        step=step,
        tokenizer_hash=facts["manifest"]["tokenizer_hash"],
        run=run,
        facts=facts,
        weights=weights,
    )
