# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `import`: which checkpoint, what model it is, and where it goes."""

import dataclasses
from typing import Any

from midjax.importing import convert, foreign, huggingface, llama2c, maxtext
from midjax.model import architecture, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """One checkpoint of others, to become a run directory.

    Attributes:
      output: the run directory to write.
      source: the checkpoint.
      model: what it is; None where the source says so itself (llama2.c, Hugging Face). If given,
        it must agree with the source but for its numerics (dtypes, remat, ...).
      tokenizer: folder with the model's tokenizer.json, kept in `output/tokenizer`; None takes what
        the source brings, if anything.
      leave_out: patterns such as "params/params/vision_encoder/*" of arrays that are not needed.
      mesh: devices that the arrays pass through.
    """

    output: str
    source: maxtext.MaxText | llama2c.Llama2c | huggingface.HuggingFace
    model: architecture.TransformerConfig | None
    tokenizer: str | None
    leave_out: tuple[str, ...]
    mesh: sharding.Mesh

    def __post_init__(self) -> None:
        if "://" in self.output:
            raise ValueError(
                f"Import.output = {self.output!r}: runs are written to local disks only, so far."
            )


def run(config: Import) -> dict[str, Any]:
    """Opens the source and writes the run directory; returns what `import.json` says.

    Raises:
      ForeignError, FileNotFoundError and other kinds of ValueError and OSError: it cannot be read
        or does not fit. Nothing was written.
    """
    opened = config.source.open(config.model)
    left_out = {**dict.fromkeys(config.leave_out, "named in Import.leave_out"), **opened.left_out}
    tokenizer = opened.tokenizer
    if config.tokenizer is not None:
        if tokenizer is not None:
            raise foreign.ForeignError(
                f"Import.tokenizer = {config.tokenizer!r}, and {opened.place} brings one of its "
                "own. Set Import.tokenizer = None to take that."
            )
        tokenizer = foreign.read_tokenizer(config.tokenizer)
    opened = dataclasses.replace(opened, left_out=left_out, tokenizer=tokenizer)
    return convert.write(opened, output=config.output, mesh=sharding.make(config.mesh))
