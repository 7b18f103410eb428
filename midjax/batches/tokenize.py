# SPDX-License-Identifier: Apache-2.0
"""The verb `tokenize`: text sources -> one token folder each."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tokenizers

from midjax import files, log, units
from midjax.batches import shards
from midjax.corpora import formats, reading, text

# Documents handed to the tokenizer's threads at once.
_BATCH_DOCUMENTS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Tokenizes each source into `output/<name>`.

    Attributes:
      sources: name -> where its documents are.
      tokenizer: folder with `tokenizer.json` (a Hugging Face fast tokenizer).
      bos_token, eos_token: put before and after each document; None puts none. Strings that look
        like special tokens inside a text are tokenized as text.
      output: folder of token folders.
      shard_tokens: tokens per shard file.
    """

    sources: Mapping[str, text.JsonLines | text.PlainText]
    tokenizer: str
    bos_token: str | None
    eos_token: str | None
    output: str
    shard_tokens: int

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("Tokenize.sources is empty. Name at least one source.")
        if self.shard_tokens < 1:
            raise ValueError(f"Tokenize.shard_tokens must be positive, got {self.shard_tokens}.")


def run(config: Tokenize) -> dict[str, dict[str, Any]]:
    """Tokenizes every source; one whose inputs did not change since is left as it is.

    Returns the manifests by source.
    """
    tokenizer, facts = load_tokenizer(config.tokenizer, config.bos_token, config.eos_token)
    manifests = {}
    for name, source in sorted(config.sources.items()):
        folder = str(files.path(config.output) / name)
        inputs = {unit.key: unit.fingerprint() for unit in source.units()}
        wanted = facts | {
            "source": name,
            "inputs": inputs,
            "reader": {"kind": type(source).__name__} | dataclasses.asdict(source),
        }
        found = files.path(folder) / shards.MANIFEST
        if found.exists():
            manifest = files.read_json(found)
            if all(manifest.get(key) == value for key, value in wanted.items()):
                shards.verify(folder)
                log.say(f"tokenize {name}: {folder} is up to date, kept")
                manifests[name] = manifest
                continue
        manifests[name] = _write(config, name, source, folder, tokenizer, wanted)
    return manifests


def load_tokenizer(
    folder: str, bos_token: str | None, eos_token: str | None
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A tokenizer and what a manifest says of it.

    Raises:
      FileNotFoundError: no `tokenizer.json` there.
      ValueError: it is no tokenizer, or a special token that the tokenizer does not know.
    """
    file = files.path(folder) / "tokenizer.json"
    if not file.exists():
        raise FileNotFoundError(
            f"No tokenizer.json in {folder!r}. Give the folder of a Hugging Face fast tokenizer."
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text())
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(f"{file} is not a fast tokenizer: {error}. Fetch it again.") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = {}
    for role, token in (("bos", bos_token), ("eos", eos_token)):
        ids[role] = None if token is None else tokenizer.token_to_id(token)
        if token is not None and ids[role] is None:
            specials = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
            raise ValueError(
                f"The tokenizer in {folder!r} has no {role} token {token!r}; it has {specials}."
            )
    facts = {
        "tokenizer_hash": files.sha256_of(file),
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
        "bos_id": ids["bos"],
        "eos_id": ids["eos"],
    }
    return tokenizer, facts


def _write(
    config: Tokenize,
    name: str,
    source: text.JsonLines | text.PlainText,
    folder: str,
    tokenizer: tokenizers.Tokenizer,
    facts: dict[str, Any],
) -> dict[str, Any]:
    tally = reading.Tally()
    total_bytes = sum(unit.size_bytes for unit in source.units())
    added = tokenizer.get_added_tokens_decoder().values()
    known = formats.TokenizerFacts(
        special_tokens=frozenset(token.content for token in added if token.special),
        bos_token=config.bos_token,
        eos_token=config.eos_token,
        chat_template=None,
    )
    with log.Progress(f"tokenize {name}", None) as progress:

        def documents() -> Iterator[tuple[str, int, np.ndarray]]:
            found = itertools.chain.from_iterable(
                source.documents(name, unit, tally, known) for unit in source.units()
            )
            for batch in _encoded(found, tokenizer, facts["bos_id"], facts["eos_id"]):
                yield from batch
                tokens = sum(len(ids) for _, _, ids in batch)
                progress.advance(tokens, share=tally.read_bytes / max(total_bytes, 1))
            if not tally.documents:  # before a manifest is written
                raise ValueError(
                    f"Source {name!r} ({source.path}) gave no document; dropped: "
                    f"{dict(tally.dropped)}. Name other files, or drop the source."
                )

        manifest = shards.write(
            folder,
            documents(),
            facts=facts | {"dropped": tally.dropped},
            shard_tokens=config.shard_tokens,
        )
    drops = "".join(f", {count} dropped: {why}" for why, count in tally.dropped.items())
    log.say(
        f"tokenize {name}: {manifest['documents']} documents, "
        f"{units.human(manifest['tokens'])} tokens, "
        f"{manifest['text_bytes'] / manifest['tokens']:.2f} bytes per token{drops}"
    )
    return manifest


def _encoded(
    documents: Iterator[Any], tokenizer: tokenizers.Tokenizer, bos: int | None, eos: int | None
) -> Iterator[list[tuple[str, int, np.ndarray]]]:
    """(id, UTF-8 bytes, token ids) of the documents, in batches."""
    head = [] if bos is None else [bos]
    tail = [] if eos is None else [eos]
    while batch := list(itertools.islice(documents, _BATCH_DOCUMENTS)):
        encoded = tokenizer.encode_batch_fast([d.text for d in batch], add_special_tokens=False)
        yield [
            (d.id, len(d.text.encode()), np.array([*head, *e.ids, *tail], np.int64))
            for d, e in zip(batch, encoded, strict=True)
        ]
