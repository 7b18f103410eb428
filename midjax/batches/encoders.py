# SPDX-License-Identifier: Apache-2.0
"""An opened tokenizer: documents -> token ids, and which of them bear loss. Fast tokenizers.

Of a document that says which of its characters bear loss, fast tokenizers' tokens bear loss from
the one that holds a range's first character to the first that holds its last: the rule of
transformers' assistant masks. EOS bears loss where the text's last characters do, blanks at its end
aside (a model learns where an answer ends), BOS never does.
"""

import abc
import array
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from midjax import files, types
from midjax.corpora import formats

# What `_encode` yields: ids and mask.
Encoded = tuple[list[int] | np.ndarray, np.ndarray | None]


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
    def _encode(self, documents: Sequence[types.Document]) -> Iterator[Encoded]:
        """(ids, mask of what bears loss or None) of each text, without BOS and EOS."""

    def encode(self, documents: Sequence[types.Document]) -> list[types.TokenDocument]:
        """Tokenizes documents; many at once are faster, and give the same as one by one."""
        bos, eos = self.facts["bos_id"], self.facts["eos_id"]
        # The fastest way from a list to an array; of type "i" it takes twice as long.
        flat = array.array("I")
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
            masks.append(None if mask is None else _around(mask, document, first, last))
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


def _around(mask: np.ndarray, document: types.Document, bos: bool, eos: bool) -> np.ndarray:
    """A mask with those of BOS and EOS."""
    ends = [end for _, end in document.loss or ()]
    last = bool(ends) and ends[-1] >= len(document.text.rstrip())
    return np.concatenate([np.zeros(int(bos), bool), mask, np.full(int(eos), last)])


def covered(
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


def chat_settings(folder: Any) -> dict[str, Any]:
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
        settings = chat_settings(folder)
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

    def _encode(self, documents: Sequence[types.Document]) -> Iterator[Encoded]:
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
                mask = covered(document.loss, len(encoding), encoding.char_to_token)
            yield encoding.ids, mask


class Elsewhere(Vocabulary):
    """The vocabulary of documents that come as tokens. It encodes nothing."""

    def __init__(
        self, *, tokenizer_hash: str, vocab_size: int, eos_id: int | None, unknown_id: int | None
    ) -> None:
        self.facts = {
            "tokenizer_hash": tokenizer_hash,
            "vocab_size": vocab_size,
            "bos_id": None,
            "eos_id": eos_id,
        }
        self.special_ids, self.unknown_id = {}, unknown_id
        self.tokenizer_facts = formats.TokenizerFacts(
            special_tokens=frozenset(), bos_token=None, eos_token=None, chat_template=None
        )

    def _encode(self, documents: Sequence[types.Document]) -> Iterator[Encoded]:
        raise AssertionError("its documents come as tokens")
