# SPDX-License-Identifier: Apache-2.0
"""What `midjax.batches.vocabulary` opens: documents -> token ids, and which of them bear loss.

Of a document that says which of its characters bear loss, the tokens from the one that holds a
range's first character to the one that holds its last bear loss: the rule of transformers'
`char_to_token` masks. EOS bears loss where the token before it does (a model learns where an answer
ends), BOS never does.
"""

import abc
import array
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from midjax import files, types
from midjax.corpora import formats

# ByT5's ids (Xue et al. 2021, arXiv:2105.13626): three special ones, then the 256 bytes.
_BYTE_SPECIALS = ("<pad>", "</s>", "<unk>")
BYTE_OFFSET = len(_BYTE_SPECIALS)
# What `_encode` yields: ids and mask.
_Encoded = tuple[list[int] | np.ndarray, np.ndarray | None]


class Vocabulary(abc.ABC):
    """An opened tokenizer.

    Attributes:
      facts: what a manifest says of it: tokenizer_hash, vocab_size, bos_id and eos_id (None where
        documents get none). Equal facts give equal tokens.
      tokenizer_facts: what formats need to know.
      special_ids: id -> string of its special tokens.
      unknown_id: what it writes where it has no token for a text; None where that cannot be.
    """

    facts: dict[str, Any]
    tokenizer_facts: formats.TokenizerFacts
    special_ids: Mapping[int, str]
    unknown_id: int | None

    @abc.abstractmethod
    def _encode(self, documents: Sequence[types.Document]) -> Iterator[_Encoded]:
        """(ids, mask of what bears loss or None) of each text, without BOS and EOS."""

    def encode(self, documents: Sequence[types.Document]) -> list[types.TokenDocument]:
        """Tokenizes documents; many at once are faster, and give the same as one by one."""
        bos, eos = self.facts["bos_id"], self.facts["eos_id"]
        flat = array.array("i")  # its `fromlist` is the fastest way from a list to an array
        ends, masks = [0], []
        for document, (ids, mask) in zip(documents, self._encode(documents), strict=True):
            has = document.special and len(ids) > 0
            first = bos is not None and not (has and ids[0] == bos)
            last = eos is not None and not (has and ids[-1] == eos)
            if first:
                flat.append(bos)
            if isinstance(ids, list):
                flat.fromlist(ids)
            else:
                flat.frombytes(ids.astype(np.int32).tobytes())
            if last:
                flat.append(eos)
            ends.append(len(flat))
            masks.append(mask if mask is None else _around(mask, first, last))
        tokens = np.frombuffer(flat, np.int32)
        return [
            types.TokenDocument(
                tokens=tokens[begin:end],
                loss=mask,
                text_bytes=utf8_bytes(document.text),
                id=document.id,
                source=document.source,
            )
            for document, mask, (begin, end) in zip(
                documents, masks, itertools.pairwise(ends), strict=True
            )
        ]


def utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _around(mask: np.ndarray, bos: bool, eos: bool) -> np.ndarray:
    """A mask with those of BOS and EOS."""
    last = bool(len(mask)) and mask[-1]
    return np.concatenate([np.zeros(int(bos), bool), mask, np.full(int(eos), last)])


def _covered(
    ranges: Sequence[tuple[int, int]], count: int, token_at: Callable[[int], int | None]
) -> np.ndarray:
    """Which of `count` tokens lie in ranges of characters, by the token that holds a character.

    Characters that are in no token (a tokenizer may skip blanks) at the ends of a range are left
    out. Transformers leaves out the rest of the text there, or takes all of it.
    """
    mask = np.zeros(count, bool)
    for begin, end in ranges:
        found = (token_at(character) for character in range(begin, end))
        first = next((token for token in found if token is not None), None)
        if first is not None:
            found = (token_at(character) for character in range(end - 1, begin - 1, -1))
            last = next(token for token in found if token is not None)
            mask[first : last + 1] = True
    return mask


def _chat_settings(folder: Any) -> dict[str, Any]:
    """`chat_template`, `bos_token`, `eos_token` that the files beside a tokenizer say."""
    settings: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").exists():
        settings = files.read_json(folder / "tokenizer_config.json")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {one["name"]: one["template"] for one in template}.get("default")
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found: dict[str, Any] = {"chat_template": template}
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)
        found[name] = token.get("content") if isinstance(token, dict) else token
    return found


class Fast(Vocabulary):
    """A Hugging Face fast tokenizer: see `vocabulary.FastTokenizer`.

    Attributes:
      tokenizer: the library's object, which reads special tokens in a text as text.
    """

    def __init__(self, path: str, bos_token: str | None, eos_token: str | None) -> None:
        folder = files.path(path)
        file = folder / "tokenizer.json"
        if not file.exists():
            raise FileNotFoundError(
                f"No tokenizer.json in {path!r}. Give the folder of a Hugging Face fast "
                "tokenizer; for a SentencePiece model, Tokenize.tokenizer = @SentencePiece()."
            )
        data = file.read_bytes()
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises no narrower kind
            raise ValueError(f"{file} is not a fast tokenizer: {error}. Fetch it again.") from error
        self._json = data.decode()
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_ids = {key: token.content for key, token in added.items() if token.special}
        ids = {}
        for role, token in (("bos", bos_token), ("eos", eos_token)):
            ids[role] = None if token is None else self.tokenizer.token_to_id(token)
            if token is not None and ids[role] is None:
                raise ValueError(
                    f"The tokenizer in {path!r} has no {role} token {token!r}; it has "
                    f"{[token.content for token in added.values()]}."
                )
        known = self.tokenizer.get_vocab(with_added_tokens=True)
        self.facts = {
            "tokenizer_hash": files.sha256(data),
            "vocab_size": max(len(known), 1 + max(known.values(), default=-1)),  # ids may have gaps
            "bos_id": ids["bos"],
            "eos_id": ids["eos"],
        }
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        self.unknown_id = None if unknown is None else self.tokenizer.token_to_id(unknown)
        settings = _chat_settings(folder)
        self.tokenizer_facts = formats.TokenizerFacts(
            special_tokens=frozenset(self.special_ids.values()),
            bos_token=bos_token or settings["bos_token"],
            eos_token=eos_token or settings["eos_token"],
            chat_template=settings["chat_template"],
        )

    @functools.cached_property
    def _reads_special(self) -> tokenizers.Tokenizer:
        """One that reads special tokens. Not a switch: threads use both at once."""
        tokenizer = tokenizers.Tokenizer.from_str(self._json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _encode(self, documents: Sequence[types.Document]) -> Iterator[_Encoded]:
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for number, document in enumerate(documents):
            kinds.setdefault((document.special, document.loss is not None), []).append(number)
        encoded: list[Any] = [None] * len(documents)
        for (special, masked), numbers in kinds.items():
            texts = [documents[number].text for number in numbers]
            tokenizer = self._reads_special if special else self.tokenizer
            # The fast variant knows no offsets.
            encode = tokenizer.encode_batch if masked else tokenizer.encode_batch_fast
            found = encode(texts, add_special_tokens=False)
            for number, encoding in zip(numbers, found, strict=True):
                encoded[number] = encoding
        for document, encoding in zip(documents, encoded, strict=True):
            mask = None
            if document.loss is not None:
                mask = _covered(document.loss, len(encoding), encoding.char_to_token)
            yield encoding.ids, mask


class _Split(Vocabulary):
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

    def __init__(self, path: str, add_bos: bool, add_eos: bool, threads: int | None) -> None:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        protos: Any = sentencepiece_model_pb2  # its classes are made when it is imported
        self._threads = -1 if threads is None else threads
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
            chat_template=_chat_settings(file.parent)["chat_template"],
        )

    @functools.cached_property
    def _without_blank(self) -> Any:
        """The model without the blank that it puts before a text."""
        import sentencepiece

        model = type(self._model)()
        model.CopyFrom(self._model)
        model.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def _encode(self, documents: Sequence[types.Document]) -> Iterator[_Encoded]:
        plain = [d.text for d in documents if not d.special and d.loss is None]
        encoded = iter(
            self._processor.encode(plain, return_type="numpy", num_threads=self._threads)
            if plain
            else ()
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

            def token_at(character: int) -> int | None:
                (holding,) = np.nonzero((firsts <= character) & (character < ends))
                return int(holding[0]) if len(holding) else None

            mask = _covered(document.loss, len(ids), token_at)
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
    """UTF-8 bytes: see `vocabulary.ByteTokenizer`. All bytes of a range bear loss."""

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

    def _encode(self, documents: Sequence[types.Document]) -> Iterator[_Encoded]:
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
