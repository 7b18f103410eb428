# SPDX-License-Identifier: Apache-2.0
"""seqio Tasks and Mixtures among the sources of `tokenize`: their vocabularies, their rates.

Tokens come from a Task's own vocabulary; its hash says whether they go with others. A Mixture
stands for its Tasks, and its rates are written down as the weights of a midjax mixture.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from midjax import files
from midjax.batches import encoders, pieces
from midjax.corpora import seqio as seqio_lib
from midjax.corpora import sources as sources_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskTokenizer:
    """What stands for the tokenizer of a Task; not for recipes.

    Attributes:
      tokenizer_hash: the same as of `SentencePiece` or `ByteTokenizer` with the same tokens.
      vocab_size, eos_id, unknown_id: of its vocabulary.
    """

    tokenizer_hash: str
    vocab_size: int
    eos_id: int | None
    unknown_id: int | None

    def open(self) -> encoders.Elsewhere:
        """What a manifest says of it; it encodes nothing."""
        return encoders.Elsewhere(
            tokenizer_hash=self.tokenizer_hash,
            vocab_size=self.vocab_size,
            eos_id=self.eos_id,
            unknown_id=self.unknown_id,
        )


def tokenizer_of(task: seqio_lib.SeqioTask) -> TaskTokenizer:
    """The tokenizer of a Task.

    Raises:
      ValueError: a vocabulary of a kind whose content cannot be told.
    """
    import seqio

    vocabulary = task.vocabulary()
    if isinstance(vocabulary, seqio.ByteVocabulary):
        digest = pieces.byte_hash(vocabulary.extra_ids)
    elif isinstance(vocabulary, seqio.SentencePieceVocabulary):
        digest = _hash_of_pieces(vocabulary)
    else:
        raise ValueError(
            f"Task {task.task!r} has a {type(vocabulary).__name__}; midjax knows seqio's "
            "SentencePieceVocabulary and ByteVocabulary."
        )
    return TaskTokenizer(
        tokenizer_hash=digest,
        vocab_size=vocabulary.vocab_size,
        eos_id=vocabulary.eos_id,
        unknown_id=vocabulary.unk_id,
    )


def _hash_of_pieces(vocabulary: Any) -> str:
    """Of the model file, or of the model where seqio adds sentinels or other rules to it."""
    from sentencepiece import sentencepiece_model_pb2

    protos: Any = sentencepiece_model_pb2
    data = files.path(vocabulary.sentencepiece_model_file).read_bytes()
    if protos.ModelProto.FromString(data) == protos.ModelProto.FromString(vocabulary.sp_model):
        return files.sha256(data)
    return files.sha256(vocabulary.sp_model)


def expand(sources: Mapping[str, sources_lib.Source]) -> dict[str, sources_lib.Reader]:
    """The sources with `name/task` for each Task in place of a Mixture `name`."""
    found: dict[str, sources_lib.Reader] = {}
    for name, source in sources.items():
        readers: dict[str, sources_lib.Reader] = {}
        if isinstance(source, seqio_lib.SeqioMixture):
            readers |= {f"{name}/{task}": reader for task, reader in source.tasks().items()}
        else:
            readers[name] = source
        if twice := sorted(set(found) & set(readers)):
            raise ValueError(f"Tokenize.sources names {twice} twice, by a Mixture and by itself.")
        found |= readers
    return found


def write_mixture(output: str, name: str, mixture: seqio_lib.SeqioMixture) -> str:
    """Writes `<output>/<name>/mixture.gin`, the rates as weights; returns its path."""
    rates = mixture.rates()
    scopes: dict[str, str] = {}
    for task in rates:
        scope = "_" + re.sub(r"\W", "_", f"{name}_{task}", flags=re.ASCII)
        while scope in scopes.values():
            scope += "_"
        scopes[task] = scope
    place = files.path(output) / name / "mixture.gin"
    lines = [
        f"# The seqio Mixture {mixture.mixture!r} ({mixture.module}, split {mixture.split}): its",
        "# Tasks as sources, its rates as shares of tokens. A recipe for it sets Source.packing,",
        "# Mixture.max_epochs, seed and block_rows, Data.row_tokens and batch_rows:",
        f"#   midjax train --gin_file=RECIPE --gin_file={place}",
        "Data.sources = {",
        *(f"    {_quoted(task)}: @{scope}/Source()," for task, scope in scopes.items()),
        "}",
        *(
            f"{scope}/Source.tokens = {_quoted(str(place.parent / task))}"
            for task, scope in scopes.items()
        ),
        "Data.mixture = @Mixture()",
        "Mixture.stages = (@seqio/Stage(),)",
        'seqio/Stage.name = "seqio"',
        "seqio/Stage.start_tokens = 0",
        "seqio/Stage.weights = {",
        *(f"    {_quoted(task)}: {rate!r}," for task, rate in rates.items()),
        "}",
    ]
    files.write_text(place, "\n".join(lines) + "\n")
    return str(place)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
