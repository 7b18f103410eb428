# SPDX-License-Identifier: Apache-2.0
"""Encoders of SentencePiece models and of bytes, which read special tokens only where told.

Every token that shares a character with a range that bears loss bears loss.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from midjax import files, types
from midjax.batches import encoders
from midjax.corpora import formats

# ByT5's ids (Xue et al. 2021, arXiv:2105.13626): three special ones, then the 256 bytes.
_BYTE_SPECIALS = ("<pad>", "</s>", "<unk>")
BYTE_OFFSET = len(_BYTE_SPECIALS)


class _Split(encoders.Vocabulary):
    """A tokenizer that itself never reads a special token in a text: texts are cut at them."""

    def _cut(self, document: types.Document) -> Iterator[tuple[int, str, int | None]]:
        """(first character, text, id of the special token that it is or None) of each part."""
        if not (document.special and self.special_ids):
            yield 0, document.text, None
            return
        ids = {string: key for key, string in self.special_ids.items()}
        begin = 0
        for part in self._special_strings.split(document.text):
            if part:
                yield begin, part, ids.get(part)
            begin += len(part)

    @functools.cached_property
    def _special_strings(self) -> re.Pattern:
        longest_first = sorted(self.special_ids.values(), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


class Pieces(_Split):
    """A SentencePiece model: see `vocabulary.SentencePiece`.

    User-defined symbols of the model are read in every text, as the library does; control symbols
    only where a format put them. The blank that models put before a text comes only before the
    first part of a text that is cut at control symbols.
    """

    def __init__(self, path: str, add_bos: bool, add_eos: bool) -> None:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        protos: Any = sentencepiece_model_pb2  # its classes are made when it is imported
        file = _model_file(path)
        data = file.read_bytes()
        self._model = protos.ModelProto()
        try:
            self._model.ParseFromString(data)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        except Exception as error:  # protobuf's errors have no common kind
            raise ValueError(f"{file} is not a SentencePiece model: {error}.") from error
        kind = protos.ModelProto.SentencePiece
        pieces = list(enumerate(self._model.pieces))
        self.special_ids = {i: p.piece for i, p in pieces if p.type == kind.CONTROL}
        defined = [p.piece for _, p in pieces if p.type == kind.USER_DEFINED]
        self.unknown_id = self._processor.unk_id()
        ids: dict[str, int | None] = {}
        for role, wanted, found in (
            ("bos", add_bos, self._processor.bos_id()),
            ("eos", add_eos, self._processor.eos_id()),
        ):
            if wanted and found < 0:
                raise ValueError(
                    f"{file} has no {role.upper()}. Set SentencePiece.add_{role} = False."
                )
            ids[role] = found if wanted else None
        self.facts = {
            "tokenizer_hash": files.sha256(data),
            "vocab_size": len(pieces),
            "bos_id": ids["bos"],
            "eos_id": ids["eos"],
        }
        own = (self._processor.bos_id(), self._processor.eos_id())
        self.tokenizer_facts = formats.TokenizerFacts(
            special_tokens=frozenset([*self.special_ids.values(), *defined]),
            bos_token=self.special_ids.get(own[0]),
            eos_token=self.special_ids.get(own[1]),
            chat_template=encoders.chat_settings(file.parent)["chat_template"],
        )

    @functools.cached_property
    def _without_blank(self) -> Any:
        """The model without the blank that it puts before a text."""
        import sentencepiece

        model = type(self._model)()
        model.CopyFrom(self._model)
        model.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def _encode(self, documents: Sequence[types.Document]) -> Iterator[encoders.Encoded]:
        plain = [d.text for d in documents if not d.special and d.loss is None]
        encoded = iter(
            self._processor.encode(plain, return_type="numpy", num_threads=1) if plain else ()
        )
        for document in documents:
            if not document.special and document.loss is None:
                yield next(encoded), None
            else:
                yield self._with_offsets(document)

    def _with_offsets(self, document: types.Document) -> tuple[np.ndarray, np.ndarray | None]:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for begin, text, special in self._cut(document):
            if special is not None:
                ids.append(special)
                spans.append((begin, begin + len(text)))
                continue
            processor = self._without_blank if begin else self._processor
            found = processor.encode(text, return_type="offset_mapping")
            ids += found["ids"]
            spans += [(begin + first, begin + end) for first, end in found["offsets"]]
        mask = None
        if document.loss is not None:
            firsts, ends = np.array(spans, np.int64).reshape(-1, 2).T
            ends = np.maximum(ends, firsts + 1)  # of a character's bytes only the last has a width
            mask = np.zeros(len(ids), bool)
            for begin, end in document.loss:
                mask |= (firsts < end) & (ends > begin)
        return np.array(ids, np.int32), mask


def _model_file(name: str) -> Any:
    place = files.path(name)
    if place.is_dir():
        found = sorted(file for file in place.iterdir() if file.suffix == ".model")
        if len(found) != 1:
            raise FileNotFoundError(
                f"{name!r} holds {len(found)} files *.model, and one is needed. Give "
                "SentencePiece.path the file itself."
            )
        return found[0]
    if not place.exists():
        raise FileNotFoundError(
            f"No SentencePiece model {name!r}. Give its file or a folder that holds just one."
        )
    return place


# Code points from which on UTF-8 takes one byte more.
_LONGER_FROM = np.array([0x80, 0x800, 0x10000])


class Bytes(_Split):
    """UTF-8 bytes: see `vocabulary.ByteTokenizer`."""

    def __init__(self, add_eos: bool) -> None:
        self.special_ids = dict(enumerate(_BYTE_SPECIALS))
        self.unknown_id = None
        self.facts = {
            "tokenizer_hash": byte_hash(0),
            "vocab_size": BYTE_OFFSET + 256,
            "bos_id": None,
            "eos_id": _BYTE_SPECIALS.index("</s>") if add_eos else None,
        }
        self.tokenizer_facts = formats.TokenizerFacts(
            special_tokens=frozenset(_BYTE_SPECIALS),
            bos_token=None,
            eos_token="</s>",
            chat_template=None,
        )

    def _encode(self, documents: Sequence[types.Document]) -> Iterator[encoders.Encoded]:
        for document in documents:
            found: list[np.ndarray] = []
            per_character: list[Any] = []
            for _, text, special in self._cut(document):
                if special is not None:
                    found.append(np.array([special], np.int32))
                    sizes: Any = np.zeros(len(text), np.int64)
                    sizes[0] = 1
                else:
                    found.append(np.frombuffer(text.encode(), np.uint8) + np.int32(BYTE_OFFSET))
                    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
                    sizes = 1 + sum(
                        (points >= least).astype(int) for least in (0x80, 0x800, 1 << 16)
                    )
                per_character.append(sizes)
            ids = np.concatenate(found) if found else np.zeros(0, np.int32)
            if document.loss is None:
                yield ids, None
                continue
            bears = np.zeros(len(document.text), bool)
            for begin, end in document.loss:
                bears[begin:end] = True
            yield ids, np.repeat(bears, np.concatenate(per_character)) if found else bears


def byte_hash(extra_ids: int) -> str:
    """The hash that stands for ByT5's ids, with so many more after the bytes."""
    return files.sha256(f"bytes, {BYTE_OFFSET} before, {extra_ids} after".encode())
