# SPDX-License-Identifier: Apache-2.0
"""Token folders against the tokenizer itself, and what a second run does."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from midjax import demo_data, files
from midjax.batches import shards, tokenize
from midjax.corpora import formats, text

TOKENIZER = str(demo_data.path("tokenizer"))
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
TEXTS = ["Hello, world.", "def f(x):\n    return x + 1\n", f"a marker {EOS} in the text", "ünïcödé"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"d{i}", "text": t} for i, t in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    source = text.JsonLines(
        path=str(path), format=formats.Text(field="text"), id_field="id", max_bad_records=1
    )
    return tokenize.Tokenize(
        sources={"s": source},
        tokenizer=TOKENIZER,
        bos_token=BOS,
        eos_token=EOS,
        output=str(tmp_path / "out"),
        shard_tokens=20,
    )


def test_documents_come_back_token_for_token(config):
    manifest = tokenize.run(config)["s"]
    source = shards.TokenSource(f"{config.output}/s")
    plain = tokenizers.Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json")
    bos, eos = plain.token_to_id(BOS), plain.token_to_id(EOS)
    assert len(source) == len(TEXTS) and source.ids() == ["d0", "d1", "d2", "d3"]
    for i, expected in enumerate(TEXTS):
        tokens = source[i]
        assert tokens[0] == bos and tokens[-1] == eos
        assert eos not in tokens[1:-1]  # a special token spelled in a text is text
        assert plain.decode(tokens[1:-1].tolist()) == expected
        assert source.lengths[i] == len(tokens)
        assert source.text_bytes[i] == len(expected.encode())
    assert manifest["tokens"] == source.lengths.sum() and manifest["dropped"] == {"not JSON": 1}
    assert len(manifest["shards"]) > 1  # 20 tokens a shard
    assert manifest["vocab_size"] == plain.get_vocab_size() and manifest["dtype"] == "<u2"


def test_unchanged_sources_are_kept_and_changed_ones_are_not(config, capsys):
    tokenize.run(config)
    tokenize.run(config)
    assert "up to date, kept" in capsys.readouterr().out
    path = files.path(config.sources["s"].path)
    path.write_text('{"id": "new", "text": "other"}\n')
    tokenize.run(config)
    assert shards.TokenSource(f"{config.output}/s").ids() == ["new"]


def test_a_damaged_shard_is_found(config):
    manifest = tokenize.run(config)["s"]
    shard = files.path(config.output) / "s" / next(iter(manifest["shards"]))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="is damaged: sha256"):
        tokenize.run(config)


def test_errors_name_what_is_wrong(config, tmp_path):
    import dataclasses

    with pytest.raises(ValueError, match=r"has no bos token '<s>'; it has .*begin_of_text"):
        tokenize.run(dataclasses.replace(config, bos_token="<s>"))
    with pytest.raises(FileNotFoundError, match="No tokenizer.json"):
        tokenize.run(dataclasses.replace(config, tokenizer=str(tmp_path)))
    files.path(config.sources["s"].path).write_text("{\n")
    with pytest.raises(ValueError, match="gave no document; dropped: {'not JSON': 1}"):
        tokenize.run(config)
    with pytest.raises(FileNotFoundError, match="not a finished token folder"):
        shards.TokenSource(f"{config.output}/s")


def test_any_fast_tokenizer_will_do(tmp_path, config):
    """A WordLevel tokenizer without BOS or EOS, made here."""
    import dataclasses

    made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    made.save(str(tmp_path / "tokenizer.json"))
    other = dataclasses.replace(config, tokenizer=str(tmp_path), bos_token=None, eos_token=None)
    tokenize.run(other)
    source = shards.TokenSource(f"{config.output}/s")
    assert [made.id_to_token(t) for t in source[0]] == ["Hello", ",", "world", "."]
