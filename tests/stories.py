# SPDX-License-Identifier: Apache-2.0
"""TinyStories, on which stories260K was trained, as text sources and as the data of a run."""

import pathlib

import imported

from midjax.batches import loader, tokenize, vocabulary
from midjax.corpora import formats, text
from midjax.mixture import stages as stages_lib

SEPARATOR = "<|endoftext|>"


def tokenizing(folder: pathlib.Path, parts: dict[str, slice]) -> tokenize.Tokenize:
    """Source -> which stories, with the tokenizer of the import in folder/in, to folder/tokens."""
    # The separator stands on a line of its own, as the reader of plain text wants it.
    whole = (imported.DATA / "tinystories" / "sample.txt").read_text()
    texts = [story.strip() for story in whole.split(SEPARATOR) if story.strip()]
    sources = {}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text(f"\n{SEPARATOR}\n".join(texts[part]))
        sources[name] = text.PlainText(
            path=str(folder / f"{name}.txt"),
            separator=SEPARATOR,
            format=formats.Text(field="text"),
            max_bad_records=0,
        )
    tokenizer = vocabulary.FastTokenizer(
        path=str(folder / "in" / "tokenizer"), bos_token="<s>", eos_token=None
    )
    return tokenize.Tokenize(
        sources=sources,
        tokenizer=tokenizer,
        output=str(folder / "tokens"),
        shard_tokens=1_000_000,
    )


def data(folder: pathlib.Path, name: str, *, batch_rows: int) -> loader.Data:
    """A run's data: rows of 256 tokens of one source of `tokenizing`."""
    stage = stages_lib.Stage(name="all", start_tokens=0, weights={name: 1.0})
    return loader.Data(
        sources={name: loader.Source(tokens=f"{folder}/tokens/{name}", packing="best_fit")},
        mixture=stages_lib.Mixture(stages=(stage,), max_epochs={name: 10.0}, seed=0, block_rows=10),
        row_tokens=256,
        batch_rows=batch_rows,
    )
