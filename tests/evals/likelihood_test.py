# SPDX-License-Identifier: Apache-2.0
"""Answers against transformers and torch's log-softmax, on texts that share much and little; the
same in any company and order, and on a mesh.

What needs four devices runs in a process that poses as having them: this file as a script.
"""

import json
import pathlib
import random
import sys

import byte_pairs
import devices
import jax
import numpy as np
import parity
import pytest
import tiny_model

from midjax.evals import likelihood, likelihood_tokens, requests
from midjax.model import hf, sharding

CONFIG = tiny_model.config(
    vocab_size=264, layers=2, kv_heads=1, initializer_std=0.4, context_tokens=128
)
ROTARY = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}


def scorer(config, params, **kwargs):
    tokenizer = likelihood_tokens.Tokenizer(
        tokenizer=byte_pairs.make("abc", template=True), prefix_id=0
    )
    given = {"batch_tokens": 1024} | kwargs
    return likelihood.Scorer(config=config, params=params, tokenizer=tokenizer, **given)


def asked():
    """Six questions after the same examples, more than a row of them; two without; twice one."""
    generator = random.Random(0)

    def words(count):
        return " ".join(generator.choice(["abc", "ba", "ca", "é"]) for _ in range(count))

    head = words(26)
    contexts = [f"{head}\n{words(6)} " for _ in range(6)] + [words(8), ""]
    found = [
        requests.Loglikelihood(context=context, continuation=more)
        for context in contexts
        for more in (" a", " b", f" {words(3)}")
    ]
    return [*found, found[4]]


def by_torch(model, before, after):
    """(nats, greedy) of ids alone in a row."""
    import torch

    # Of a dynamic rotary embedding transformers remembers the longest text until a short one comes.
    parity.torch_logits(model, np.array(before[:1]))
    logits = torch.from_numpy(parity.torch_logits(model, np.array([*before, *after[:-1]])))
    logs = torch.log_softmax(logits, dim=-1)[-len(after) :].numpy()
    return float(logs[np.arange(len(after)), after].sum()), logs.argmax(axis=-1).tolist() == after


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        # Texts beyond 40 tokens turn by angles of their own length, and stand alone.
        ("llama", {"max_position_embeddings": 40, "rope_parameters": ROTARY}),
    ],
)
def test_answers_are_those_of_torch(kind, settings, tmp_path):
    model = parity.torch_model(kind, vocab_size=264, initializer_range=0.3, **settings)
    model.save_pretrained(str(tmp_path))
    config, params = hf.load(str(tmp_path))
    ours = scorer(config, params, context_tokens=128)
    wanted = asked()
    pairs = likelihood_tokens.pairs(ours.tokenizer, wanted)
    assert max(len(a) + len(b) for a, b in pairs) > 90
    # What the model would say itself, so that some are greedy.
    for before, _ in pairs[:12:3]:
        best = int(parity.torch_logits(model, np.array(before))[-1].argmax())
        pairs.append((before, [best]))
    found = ours._answers(pairs, np.arange(len(pairs)), len(pairs))
    theirs = [by_torch(model, before, after) for before, after in pairs]
    np.testing.assert_allclose([one.nats for one in found], [n for n, _ in theirs], atol=1e-3)
    assert [one.greedy for one in found] == [greedy for _, greedy in theirs]
    assert [one.tokens for one in found] == [len(after) for _, after in pairs]
    assert {greedy for _, greedy in theirs} == {True, False}


@pytest.fixture(scope="module")
def params():
    return tiny_model.params(CONFIG)


@pytest.fixture(scope="module")
def alone(params):
    """Of each request by itself."""
    return [scorer(CONFIG, params).loglikelihoods([one])[0] for one in asked()]


def nats(found):
    return [one.nats for one in found]


def test_company_and_order_change_nothing(params, alone):
    ours, wanted = scorer(CONFIG, params), asked()
    order = random.Random(1).sample(range(len(wanted)), len(wanted))
    found = ours.loglikelihoods([wanted[number] for number in order])
    np.testing.assert_allclose(nats(found), [alone[number].nats for number in order], atol=1e-4)
    assert [one.tokens for one in found] == [alone[number].tokens for number in order]
    assert ours.counts["requests"] == len(wanted)
    # The examples once, not eighteen times.
    assert ours.counts["places"] < ours.counts["tokens"] / 1.5
    assert ours.loglikelihoods([]) == []


def test_rolling_sums_the_windows(params):
    ours = scorer(CONFIG, params, context_tokens=16)
    texts = ["ca" * 25, "", "abc"]
    found = ours.rolling([requests.Rolling(text=text) for text in texts])
    for text, one in zip(texts, found, strict=True):
        windows = list(likelihood_tokens.windows(ours.tokenizer, text, 16))
        parts = ours._answers(windows, np.arange(len(windows)), len(windows))
        assert one.nats == pytest.approx(sum(nats(parts)), abs=1e-4)
        # The text's tokens, and the BOS that the template puts before it.
        (ids,) = ours.tokenizer.encode([text])
        assert one.tokens == len(ids) == sum(part.tokens for part in parts)
    assert len(list(likelihood_tokens.windows(ours.tokenizer, texts[0], 16))) == 4


def test_what_is_cut_is_counted(params, capsys):
    ours = scorer(CONFIG, params, context_tokens=16)
    long = requests.Loglikelihood(context="b" * 40, continuation="aa")
    short = requests.Loglikelihood(context="b" * 14, continuation="aa")  # with <s> 17, 16 read
    cut, whole = ours.loglikelihoods([long, short])
    # <s> and 40 letters and 2, of which the last 17 are left.
    assert (ours.counts["cut requests"], ours.counts["cut tokens"]) == (1, 26)
    assert "1 of 2 requests exceed the context of 16 tokens: 26 tokens are cut" in (
        capsys.readouterr().out
    )
    id_b, id_a = (ours.tokenizer.bare([letter])[0][0] for letter in "ba")
    (bare,) = ours._answers([([id_b] * 15, [id_a, id_a])], np.arange(1), 1)
    assert cut.nats == pytest.approx(bare.nats, abs=1e-5) and cut.nats != whole.nats
    with pytest.raises(ValueError, match="17 tokens does not fit the model's context of 16"):
        ours.loglikelihoods([short, requests.Loglikelihood(context="b", continuation="a" * 17)])


def test_long_continuations_are_scored_in_chunks(params):
    import dataclasses

    config = dataclasses.replace(CONFIG, loss_chunk_tokens=24)
    text = [requests.Rolling(text="abcé" * 20)]
    (chunked,) = scorer(config, params).rolling(text)
    (whole,) = scorer(CONFIG, params).rolling(text)
    assert whole.tokens > 2 * 24 and chunked.nats == pytest.approx(whole.nats, abs=1e-4)


def test_a_tokenizer_that_the_model_lacks_is_refused(params):
    with pytest.raises(ValueError, match="The tokenizer has 260 tokens, the model 96"):
        scorer(tiny_model.config(), params)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesh") / "found.json"
    devices.run_script(__file__, out)
    return json.loads(out.read_text())


def test_the_mesh_changes_nothing(four_devices, alone):
    np.testing.assert_allclose(four_devices, nats(alone), atol=1e-4)


def main(out: str) -> None:
    from midjax.model import transformer

    mesh = sharding.make(sharding.Mesh(data=1, fsdp=1, tensor=2, context=2))
    whole = tiny_model.params(CONFIG)
    places = sharding.tree(mesh, transformer.logical_axes(CONFIG), whole)
    params = jax.device_put(whole, places)
    found = scorer(CONFIG, params, jax_mesh=mesh).loglikelihoods(asked())
    pathlib.Path(out).write_text(json.dumps(nats(found)))


if __name__ == "__main__":
    main(sys.argv[1])
