# SPDX-License-Identifier: Apache-2.0
"""A byte-level tokenizer with merges that a test chooses; <s> is 0, </s> the last."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors


def make(*merged: str, template: bool = False) -> tokenizers.Tokenizer:
    """With tokens for these texts (a blank is Ġ); `template` puts <s> before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", *alphabet])}
    merges = []
    for word in merged:
        for size in range(2, len(word) + 1):
            if word[:size] not in vocab:
                vocab[word[:size]] = len(vocab)
                merges.append((word[: size - 1], word[size - 1]))
    found = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<s>", "</s>"])
    if template:
        found.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return found


def save(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, **settings: str) -> str:
    """As a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)
