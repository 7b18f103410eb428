# SPDX-License-Identifier: Apache-2.0
"""llama2.c's `tokenizer.bin` -> a Hugging Face tokenizer that gives the same ids.

    longest token's length, then (score, length, bytes) per token --convert--> tokenizer.json, ...

llama2.c puts a space before the text, looks up each character (bytes <0x00>.. for those that it
does not have), and joins the neighbours whose union has the highest score, leftmost first, until
none is a token. That is BPE with the ways to split each token as merges, best score first.

One text in a very long while differs: where a token is the union of x, y and of y, z both, the text
holds x y z, and the same token can be split the other way round, too ("aaa"). The left one is
joined there; here, the pair that is first in the list.
"""

import json
import struct

import tokenizers
from tokenizers import decoders, models, normalizers, processors

from midjax import files
from midjax.importing import foreign

_SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>"}
_FIRST_BYTE = 3
_FIRST_PIECE = _FIRST_BYTE + 256


def read(path: str, vocab_size: int) -> list[tuple[str, float]]:
    """(text, score) of every token, as llama2.c has them: special ones within line ends.

    Raises:
      FileNotFoundError: no such file.
      ForeignError: truncated, or not such a file, or of another vocabulary.
    """
    data = files.path(path).read_bytes()
    at, found = 4, []
    try:
        for _ in range(vocab_size):
            score, length = struct.unpack_from("<fi", data, at)
            if not 0 <= length <= len(data) - at - 8:
                raise struct.error(f"a token of {length} bytes")
            found.append((data[at + 8 : at + 8 + length].decode(), score))
            at += 8 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise foreign.ForeignError(
            f"{path} is no tokenizer of llama2.c with {vocab_size} tokens: token {len(found)} "
            f"cannot be read ({error}). It is truncated, or another model's."
        ) from error
    if at != len(data):
        raise foreign.ForeignError(
            f"{path} has {len(data) - at} bytes after the {vocab_size} tokens of the model: it is "
            "another model's tokenizer."
        )
    texts = [text for text, _ in found]
    for number in range(256):
        if texts[_FIRST_BYTE + number] != f"<0x{number:02X}>":
            raise foreign.ForeignError(
                f"{path}: token {_FIRST_BYTE + number} is {texts[_FIRST_BYTE + number]!r}, and a "
                f"tokenizer of llama2.c has the byte <0x{number:02X}> there."
            )
    if " " not in texts[_FIRST_PIECE:] or len(set(texts)) != len(texts):
        raise foreign.ForeignError(f"{path}: no token is the space, or two tokens are the same.")
    return found


def convert(path: str, vocab_size: int) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer, by name.

    Args:
      path: the `.bin`.
      vocab_size: of the model; the file does not say how many tokens it has.

    Raises:
      FileNotFoundError, ForeignError: as `read`.
    """
    found = read(path, vocab_size)
    vocab = {_SPECIAL.get(i, text): i for i, (text, _) in enumerate(found)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges(found), unk_token="<unk>", byte_fallback=True)
    )
    # Real spaces, not the sign that sentencepiece puts for them: llama2.c's file has none of it.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=1) + "\n").encode(),
    }


def merges(found: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Pairs of tokens whose union is a token, the union with the best score first."""
    pieces = found[_FIRST_PIECE:]
    known = {text for text, _ in pieces}
    ranked = sorted(pieces, key=lambda piece: -piece[1])  # stable: equal scores by id
    pairs: list[tuple[str, str]] = []
    for text, _ in ranked:
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        here = [pair for pair in splits if pair[0] in known and pair[1] in known]
        # Of x y z with two ways to join, the left one is first.
        pairs += sorted(here, key=lambda pair: _is_right(pair, here))
    return pairs


def _is_right(pair: tuple[str, str], pairs: list[tuple[str, str]]) -> bool:
    """Whether it is the (y, z) of some x, y, z whose x and y join to the same."""
    return any(left[1] == pair[0] and left != pair for left in pairs)
