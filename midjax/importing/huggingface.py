# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders as an imported run: parameters and tokenizer, no optimizer state.

A run can also begin from such a folder without an import, with `Start.huggingface`; an import gives
it a place that `midjax eval` and `midjax export` read, and a proof of its norms.
"""

import dataclasses

from midjax import files
from midjax.importing import foreign
from midjax.model import architecture, hf, hf_generation


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """A local Hugging Face folder with safetensors.

    Attributes:
      path: the folder.
    """

    path: str

    def open(self, model: architecture.TransformerConfig | None) -> foreign.Foreign:
        """Reads config.json, generation_config.json and the tokenizer.

        Raises:
          FileNotFoundError, ValueError: see `hf.read_config` and `hf_generation.read`.
          ForeignError: the model that was given contradicts config.json.
        """
        model = foreign.agree(model, hf.read_config(self.path), f"{self.path}/config.json")
        has_tokenizer = (files.path(self.path) / "tokenizer.json").exists()
        return foreign.Foreign(
            origin={"format": "huggingface", "path": self.path},
            model=model,
            load=lambda targets: hf.load(self.path, targets=targets)[1],
            tokenizer=foreign.read_tokenizer(self.path) if has_tokenizer else None,
            said=hf_generation.read(self.path),
        )
