# SPDX-License-Identifier: Apache-2.0
"""The root `Eval`: what to measure, on which model. `run` measures it; `Parts` is the what."""

import dataclasses
from typing import Literal

from midjax.evals.compare import Comparison
from midjax.evals.generate import Samples
from midjax.evals.long.run import LongTasks
from midjax.evals.loss import LongDocuments
from midjax.evals.needle import Needles
from midjax.evals.suite import Tasks
from midjax.model import architecture, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What to measure, whatever the model: text in token folders, tasks, or both.

    Attributes:
      tasks: questions to answer; None asks none.
      tokens: folder that holds one token folder per source, text the model was not trained on;
        the parts below name folders in it.
      domains: names of the token folders that are scored in bits per byte.
      row_tokens: how much of a document the model sees at once there; the same for every model
        that is to be compared.
      batch_rows: rows per batch; divides over the mesh's data axes.
      long: long documents for loss by position, which may exceed the model's context; None skips.
      samples: prompts to continue, which begin as the first domain's documents do; None skips.
      needle: pass keys hidden in long text, which may exceed the model's context; None skips.
      long_tasks: RULER's tasks at any length, which may exceed the model's context; None skips.
    """

    tasks: Tasks | None = None
    tokens: str | None = None
    domains: tuple[str, ...] = ()
    row_tokens: int | None = None
    batch_rows: int | None = None
    long: LongDocuments | None = None
    samples: Samples | None = None
    needle: Needles | None = None
    long_tasks: LongTasks | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval(Parts):
    """What to measure on which checkpoint; what is in `Parts`.

    Attributes:
      name: of the result file.
      run: run directory whose checkpoint is measured; or
      folder: a Hugging Face folder.
      output: where results of a Hugging Face folder are written, laid out as a run's.
      step: completed updates of the run's checkpoint; None is the newest.
      weights: "params", or "ema", the average that a run with `Train.ema` keeps of them.
      tokenizer: folder with `tokenizer.json`, the one the tokens were made with; of a Hugging Face
        folder its own if None.
      compute_dtype: of matrix products; None is the run's, and float32 for a Hugging Face folder;
        the same for every model that is to be compared.
      comparison: of `midjax eval --against PARENT`: how much may be lost.
      mesh: devices; need not be those of the training.
    """

    name: str
    mesh: sharding.Mesh
    run: str | None = None
    folder: str | None = None
    output: str | None = None
    step: int | None = None
    tokenizer: str | None = None
    weights: Literal["params", "ema"] = "params"
    compute_dtype: architecture.Dtype | None = None
    comparison: Comparison = dataclasses.field(default_factory=Comparison)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"Eval.name={self.name!r} must be a plain file name, such as 'after'.")
        self._check_model()
        self._check_asked()
        if repeated := sorted({d for d in self.domains if self.domains.count(d) > 1}):
            raise ValueError(f"Eval.domains names {repeated} more than once.")
        for name in ("row_tokens", "batch_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"Eval.{name} must be 1 or more, got {value}.")

    def _check_model(self) -> None:
        if bool(self.run) == bool(self.folder):
            raise ValueError(
                "Give Eval.run (a run directory) or Eval.folder (a Hugging Face folder), one of "
                f"them; got {self.run!r} and {self.folder!r}."
            )
        if bool(self.folder) != bool(self.output):
            raise ValueError(
                "Eval.output is where the results of Eval.folder are written, and of nothing else; "
                f"got Eval.folder={self.folder!r} and Eval.output={self.output!r}."
            )
        if self.folder and (self.step is not None or self.weights != "params"):
            raise ValueError("Eval.step and Eval.weights are of Eval.run, not of Eval.folder.")
        if self.run and not self.tokenizer:
            raise ValueError("Eval.tokenizer is not set. Name the tokenizer's folder.")

    def _check_asked(self) -> None:
        texts = [self.domains, self.long, self.needle, self.long_tasks]
        if not any([*texts, self.samples, self.tasks]):
            raise ValueError("Eval asks nothing. Set Eval.tasks, or Eval.domains with Eval.tokens.")
        if any(texts) and not self.tokens:
            raise ValueError("Eval.tokens is not set. Name the folder that holds token folders.")
        if self.domains and (self.row_tokens is None or self.batch_rows is None):
            raise ValueError("Eval.domains needs Eval.row_tokens and Eval.batch_rows.")
        if self.samples and not self.domains:
            raise ValueError(
                "Eval.samples begin as the first of Eval.domains does, and there is none. Name a "
                "token folder."
            )

    @property
    def model(self) -> str:
        """What is measured."""
        return str(self.run or self.folder)

    @property
    def tokenizer_folder(self) -> str:
        """Where the tokenizer is."""
        return str(self.tokenizer or self.folder)
