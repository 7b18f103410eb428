# SPDX-License-Identifier: Apache-2.0
"""Eval losses against closed forms, and against documents scored one by one."""

import functools
import math

import jax
import numpy as np
import pytest

from midjax.batches import shards
from midjax.evals import loss
from midjax.model import architecture, rope, transformer

BOS, EOS, VOCAB = 1, 2, 32
TEXT_LENGTHS = [5, 1, 40, 17, 33, 3, 12]  # tokens of text per document
BYTES = [11, 3, 90, 40, 70, 9, 25]


def model(**changes):
    fields = {
        "vocab_size": VOCAB,
        "dim": 16,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 8,
        "ffn_dim": 24,
        "norm_eps": 1e-5,
        "tied_head": False,
        "context_tokens": 64,
        "rope": rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="none")),
        "initializer_std": 0.4,
        "param_dtype": "float32",
        "compute_dtype": "float32",
        "remat": "none",
        "loss_chunk_tokens": 16,
    }
    return architecture.TransformerConfig(**(fields | changes))


def write(folder, texts, *, eos=EOS):
    documents = [
        (str(i), size, np.array([BOS, *text] + ([] if eos is None else [eos])))
        for i, (text, size) in enumerate(zip(texts, BYTES, strict=False))
    ]
    facts = {
        "source": "books",
        "tokenizer_hash": "t",
        "vocab_size": VOCAB,
        "bos_id": BOS,
        "eos_id": eos,
    }
    shards.write(str(folder), documents, facts=facts, shard_tokens=30)
    return shards.TokenSource(str(folder))


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, n).tolist() for n in TEXT_LENGTHS]


@pytest.fixture
def source(tmp_path, texts):
    return write(tmp_path / "books", texts)


def of_targets(batch):
    """Each target costs its own id; EOS and padding cost what would be noticed."""
    costs = np.asarray(batch.targets, np.float32)
    costs = np.where(np.asarray(batch.targets) == EOS, 1e6, costs)
    return np.where(np.asarray(batch.segments) == 0, 1e9, costs)


@pytest.mark.parametrize("row_tokens", [4, 16, 64, 500])
@pytest.mark.parametrize("batch_rows", [1, 3])
def test_a_uniform_model_gives_log_v(source, row_tokens, batch_rows):
    def uniform(batch):
        return np.full(batch.tokens.shape, math.log(VOCAB), np.float32)

    found = loss.domain(source, uniform, row_tokens=row_tokens, batch_rows=batch_rows)
    tokens, size = sum(TEXT_LENGTHS), sum(BYTES)
    assert found["tokens"] == tokens and found["bytes"] == size
    assert found["documents"] == len(TEXT_LENGTHS)
    assert found["nats_per_token"] == pytest.approx(math.log(VOCAB), rel=1e-7)
    assert found["bits_per_byte"] == pytest.approx(tokens * 5 / size, rel=1e-7)  # log2(32) = 5


@pytest.mark.parametrize("row_tokens", [1, 7, 16, 500])
@pytest.mark.parametrize("batch_rows", [1, 4])
def test_every_text_target_is_scored_once(source, texts, row_tokens, batch_rows):
    seen = []
    found = loss.domain(
        source, of_targets, row_tokens=row_tokens, batch_rows=batch_rows, advance=seen.append
    )
    total = sum(sum(text) for text in texts)
    assert found["nats_per_token"] * found["tokens"] == pytest.approx(total, rel=1e-12)
    # Each document is a block here, so its own sum is known too.
    assert [b["nats"] for b in found["blocks"]] == [sum(text) for text in texts]
    assert [b["bytes"] for b in found["blocks"]] == BYTES
    pairs = sum(n + 1 for n in TEXT_LENGTHS)
    assert sum(seen) == -(-pairs // row_tokens) * row_tokens


def test_many_documents_make_a_few_blocks_that_sum_to_the_whole(tmp_path, monkeypatch, source):
    monkeypatch.setattr(loss, "MAX_BLOCKS", 3)
    found = loss.domain(source, of_targets, row_tokens=16, batch_rows=2)
    assert len(found["blocks"]) == 3
    nats = sum(b["nats"] for b in found["blocks"])
    assert nats == pytest.approx(found["nats_per_token"] * found["tokens"], rel=1e-12)
    assert sum(b["bytes"] for b in found["blocks"]) == sum(BYTES)


def test_without_eos_every_target_counts(tmp_path, texts):
    source = write(tmp_path / "no_eos", texts, eos=None)
    found = loss.domain(
        source, lambda b: np.asarray(b.targets, np.float32), row_tokens=16, batch_rows=2
    )
    assert found["tokens"] == sum(TEXT_LENGTHS)
    assert found["nats_per_token"] * found["tokens"] == pytest.approx(sum(map(sum, texts)))


def test_eos_inside_a_text_is_refused(tmp_path):
    source = write(tmp_path / "bad", [[5, 6], [7, EOS, 8]])
    with pytest.raises(ValueError, match=r"EOS inside their text.*document 1"):
        loss.domain(source, of_targets, row_tokens=8, batch_rows=1)


def test_documents_without_text_are_refused(tmp_path):
    source = write(tmp_path / "empty", [[], []])
    with pytest.raises(ValueError, match="no text to score"):
        loss.domain(source, of_targets, row_tokens=8, batch_rows=1)


def test_a_loss_that_is_not_finite_is_null(source):
    found = loss.domain(
        source, lambda b: np.full(b.tokens.shape, np.nan), row_tokens=8, batch_rows=4
    )
    assert found["bits_per_byte"] is None and found["nats_per_token"] is None


def test_position_buckets_are_means_of_their_positions(source):
    config = loss.LongDocuments(source="books", row_tokens=16, bucket_tokens=4, batch_rows=2)
    found = loss.by_position(source, lambda b: np.asarray(b.positions, np.float32), config)
    # Documents with 16 targets or more: 40, 17 and 33 tokens of text.
    assert found["documents"] == 3 and sum(found["dropped"].values()) == 4
    means = [bucket["nats_per_token"] for bucket in found["buckets"]]
    assert means == [1.5, 5.5, 9.5, 13.5]
    assert [(b["from"], b["to"], b["tokens"]) for b in found["buckets"]] == [
        (0, 4, 12), (4, 8, 12), (8, 12, 12), (12, 16, 12)
    ]  # fmt: skip


def test_position_buckets_sum_to_the_documents_and_leave_eos_out(source, texts):
    config = loss.LongDocuments(source="books", row_tokens=18, bucket_tokens=6, batch_rows=2)
    found = loss.by_position(source, of_targets, config)
    # The text of 17 tokens just fits: its 18th target is EOS.
    expected = sum(sum(text[:18]) for text in texts if len(text) >= 17)
    total = sum(b["nats_per_token"] * b["tokens"] for b in found["buckets"])
    assert total == pytest.approx(expected, rel=1e-12)
    assert [b["tokens"] for b in found["buckets"]] == [18, 18, 17]


def test_a_bucket_must_divide_the_row():
    with pytest.raises(ValueError, match="not a multiple"):
        loss.LongDocuments(source="books", row_tokens=10, bucket_tokens=4, batch_rows=1)


def test_a_model_with_a_zero_head_is_uniform(source):
    config = model()
    params = transformer.init(config, jax.random.key(0))
    params["head"] = params["head"] * 0
    found = loss.domain(source, loss.from_model(config, params, None), row_tokens=24, batch_rows=2)
    assert found["nats_per_token"] == pytest.approx(math.log(VOCAB), rel=1e-6)


def test_packed_documents_score_as_if_each_stood_alone(source, texts):
    config = model()
    params = transformer.init(config, jax.random.key(1))
    # One row holds everything: no document is cut, so masks alone must keep them apart.
    row_tokens = sum(n + 1 for n in TEXT_LENGTHS)
    found = loss.domain(
        source, loss.from_model(config, params, None), row_tokens=row_tokens, batch_rows=1
    )
    apply = jax.jit(functools.partial(transformer.apply, config))
    for text, block in zip(texts, found["blocks"], strict=True):
        tokens = np.array([[BOS, *text]])
        positions = np.arange(len(text))[None]
        logits = apply(params, tokens[:, :-1], np.ones_like(positions), positions)
        logp = np.asarray(jax.nn.log_softmax(logits))[0]
        expected = -logp[np.arange(len(text)), tokens[0, 1:]].sum()
        assert block["nats"] == pytest.approx(expected, rel=2e-5)
