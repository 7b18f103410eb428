# SPDX-License-Identifier: Apache-2.0
"""What the engine adds to the scorer and the sampler: prompts as lm_eval cuts them."""

import byte_pairs
import pytest
import tiny_model

from midjax.evals import batcher, engine, likelihood, likelihood_tokens, requests, sampling

CONFIG = tiny_model.config(vocab_size=264, layers=2, initializer_std=0.4, context_tokens=32)


@pytest.fixture(scope="module")
def made():
    tokenizer = likelihood_tokens.Tokenizer(
        tokenizer=byte_pairs.make("abc", template=True), prefix_id=0
    )
    scorer = likelihood.Scorer(
        config=CONFIG, params=tiny_model.params(CONFIG), tokenizer=tokenizer, batch_tokens=256
    )
    return engine.Engine(scorer=scorer, eos_ids=(), batch_rows=4)


def by_batcher(made, prompt, new):
    """Text of the greedy continuation of ids."""
    model = batcher.Model(
        config=CONFIG, params=made.scorer.params, vocab_size=260, eos_ids=(), batch_rows=1
    )
    asked = batcher.Asked(
        prompt=tuple(prompt),
        max_new_tokens=new,
        temperature=0.0,
        top_p=1.0,
        key=sampling.key_of(0, prompt, 0),
    )
    (found,) = batcher.continuations(model, [asked])
    return made.scorer.tokenizer.tokenizer.decode(found)


def test_continuations_begin_as_the_tokenizer_says_and_lose_what_does_not_fit(made, capsys):
    short, long = "cab", "ca" * 20
    asked = [requests.Generate(context=c, stop=(), max_new_tokens=8) for c in (short, long, "")]
    found = made.generate(asked)
    ids = made.scorer.tokenizer.encode([short, long, ""])
    assert [one[0] for one in ids] == [0, 0, 0] and len(ids[1]) == 41
    prompts = [ids[0], ids[1][-24:], ids[2]]
    assert found == [(by_batcher(made, prompt, 8),) for prompt in prompts]
    assert made.scorer.counts["cut requests"] == 1 and made.scorer.counts["cut tokens"] == 17
    assert "1 of 3 prompts do not fit the context of 32 tokens" in capsys.readouterr().out


def test_what_stops_a_continuation_is_not_in_it(made):
    before = made.scorer.counts["texts cut"]
    (whole,) = made.generate([requests.Generate(context="cab", stop=(), max_new_tokens=8)])[0]
    stop = whole[2:4]
    (cut,) = made.generate([requests.Generate(context="cab", stop=(stop,), max_new_tokens=8)])[0]
    assert cut == whole[: whole.index(stop)]
    # The first had more to say after eight tokens.
    assert made.scorer.counts["texts cut"] - before == 1


def test_likelihoods_are_the_scorers(made):
    asked = [requests.Loglikelihood(context="cab", continuation=" a")]
    assert made.loglikelihoods(asked) == made.scorer.loglikelihoods(asked)
    rolling = [requests.Rolling(text="cabcab")]
    assert made.rolling(rolling) == made.scorer.rolling(rolling)


def test_room_for_a_prompt_is_wanted(made):
    with pytest.raises(ValueError, match="max_new_tokens=32 leaves no room"):
        made.generate([requests.Generate(context="a", stop=(), max_new_tokens=32)])
