# SPDX-License-Identifier: Apache-2.0
"""What opening a tokenizer says of it, and what it refuses. Encoding: encoders_test."""

import hashlib
import pathlib

import pytest

from midjax import config, demo_data
from midjax.batches import tokenize, vocabulary

FOLDER = str(demo_data.path("tokenizer"))


def fast(**changes):
    given = {"path": FOLDER, "bos_token": None, "eos_token": None} | changes
    return vocabulary.FastTokenizer(**given)


def test_facts_of_a_fast_tokenizer():
    file = pathlib.Path(FOLDER, "tokenizer.json")
    facts = fast(eos_token="<|end_of_text|>").open().facts
    assert facts == {
        "tokenizer_hash": hashlib.sha256(file.read_bytes()).hexdigest(),
        "vocab_size": 2048,
        "bos_id": None,
        "eos_id": 1,
    }


def test_what_is_missing_or_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No tokenizer.json in .*@SentencePiece\(\)"):
        fast(path=str(tmp_path)).open()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a fast tokenizer"):
        fast(path=str(tmp_path)).open()
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not a fast tokenizer"):
        fast(path=str(tmp_path)).open()
    with pytest.raises(ValueError, match=r"has no bos token '<s>'; it has .*begin_of_text"):
        fast(bos_token="<s>").open()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["Tokenize.tokenizer = @SentencePiece()", 'SentencePiece.path = "m"',
             "SentencePiece.add_bos = True", "SentencePiece.add_eos = False"],
            vocabulary.SentencePiece(path="m", add_bos=True, add_eos=False),
        ),
        (
            ["Tokenize.tokenizer = @ByteTokenizer()", "ByteTokenizer.add_eos = True"],
            vocabulary.ByteTokenizer(add_eos=True),
        ),
    ],
)  # fmt: skip
def test_recipes_choose_any_of_them(tmp_path, lines, expected):
    recipe = tmp_path / "r.gin"
    recipe.write_text(
        "\n".join(
            [
                'Tokenize.sources = {"a": @PlainText()}',
                'PlainText.path = "x"',
                "PlainText.separator = None",
                "PlainText.format = @Text()",
                'Text.field = "text"',
                "PlainText.max_bad_records = 0",
                'Tokenize.output = "out"',
                "Tokenize.shard_tokens = 10",
                *lines,
            ]
        )
    )
    root = config.load("tokenize", [str(recipe)])
    assert isinstance(root, tokenize.Tokenize) and root.tokenizer == expected
