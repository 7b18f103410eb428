# SPDX-License-Identifier: Apache-2.0
"""Tokenizers behind one interface: `FastTokenizer`, `SentencePiece`, `ByteTokenizer`.

config.open() -> encoders.Vocabulary;   vocabulary.encode(documents) -> token documents

BOS comes before each document and EOS after it, where the configuration names them; a text that a
format has begun with BOS or ended with EOS gets no second one.
"""

import dataclasses

from midjax.batches import encoders, pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastTokenizer:
    """A Hugging Face fast tokenizer.

    Attributes:
      path: folder with `tokenizer.json`, and the chat template if there is one.
      bos_token, eos_token: put before and after each document; None puts none.
    """

    path: str
    bos_token: str | None
    eos_token: str | None

    def open(self) -> encoders.Fast:
        """Loads it.

        Raises:
          FileNotFoundError: no `tokenizer.json` there.
          ValueError: it is no tokenizer, or lacks a special token that is asked for.
        """
        return encoders.Fast(self.path, self.bos_token, self.eos_token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """A SentencePiece model.

    Attributes:
      path: the model file (`tokenizer.model`, `spiece.model`), or a folder that holds just one.
      add_bos, add_eos: put the model's own BOS and EOS around each document.
    """

    path: str
    add_bos: bool
    add_eos: bool

    def open(self) -> pieces.Pieces:
        """Loads it.

        Raises:
          FileNotFoundError: no model file there.
          ValueError: it is no model, or has no BOS or EOS though one is asked for.
        """
        return pieces.Pieces(self.path, self.add_bos, self.add_eos)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTokenizer:
    """UTF-8 bytes as tokens, with the ids of ByT5: 0 pad, 1 EOS, 2 unknown, bytes from 3 on.

    Attributes:
      add_eos: put EOS after each document. There is no BOS.
    """

    add_eos: bool

    def open(self) -> pieces.Bytes:
        """Needs no file."""
        return pieces.Bytes(self.add_eos)


Tokenizer = FastTokenizer | SentencePiece | ByteTokenizer
