# SPDX-License-Identifier: Apache-2.0
import json

import jax
import jax.numpy as jnp
import tiny_run as tiny

from midjax import files
from midjax.model import transformer
from midjax.train import loop, step, unseen
from midjax.train.optimizers import optimizer

# Ids, and how often the data has them.
SPECIAL = {"<|seen|>": (3, 7), "<|short|>": (5, 1), "<|never|>": (9, 120)}


def state(**kwargs) -> step.TrainState:
    """Row 5 of the embedding is short; Adam saw no gradient for row 9."""
    params = transformer.init(tiny.model(**kwargs), jax.random.key(0))
    params["embed"] = jnp.ones_like(params["embed"]).at[5].set(0.01)
    made = optimizer.make(tiny.adamw())
    parts = optimizer.to_parts(made.init(params))
    nu = {**parts["moments"]["nu"], "embed": jnp.ones_like(params["embed"]).at[9].set(0.0)}
    moments = {"mu": parts["moments"]["mu"], "nu": nu}
    opt_state = optimizer.from_parts(made.init(params), {"moments": moments})
    count = jnp.int32(0)
    return step.TrainState(step=count, schedule_count=count, params=params, opt_state=opt_state)


def test_short_rows_and_rows_without_a_gradient_are_told():
    told = unseen.warnings(state(), SPECIAL, tied_head=False, moments_kept=True)
    assert len(told) == 2
    assert "'<|short|>' 1 times" in told[0] and "1.0% of the median" in told[0]
    assert "'<|never|>' 120 times" in told[1] and "no gradient ever" in told[1]


def test_moments_say_nothing_where_they_are_new_or_the_head_is_tied():
    for tied, kept in ((True, True), (False, False)):
        told = unseen.warnings(state(), SPECIAL, tied_head=tied, moments_kept=kept)
        assert len(told) == 1 and "<|short|>" in told[0]


def test_nothing_special_nothing_told():
    assert unseen.warnings(state(), {}, tied_head=False, moments_kept=True) == []


def test_a_run_from_a_checkpoint_tells_and_a_fresh_one_does_not(tmp_path, capsys):
    tiny.write_tokens(tmp_path / "tokens")
    place = tmp_path / "tokens" / "code" / "manifest.json"
    # Id 70 is in no document, so that pretraining gives its row no gradient; BOS is in all.
    said = {"special_ids": {"<|new|>": 70, "<|used|>": tiny.VOCAB - 2}}
    files.write_json(
        place,
        files.read_json(place) | said | {"lint": {"special": {"<|new|>": 5, "<|used|>": 60}}},
    )
    model = tiny.model(vocab_size=72)
    loop.run(tiny.train(tmp_path, steps=4, model=model))
    assert "never" not in capsys.readouterr().out
    loop.run(tiny.anneal(tmp_path, steps=2, model=model))
    told = [line for line in capsys.readouterr().out.splitlines() if "never" in line]
    assert len(told) == 1 and "'<|new|>' 5 times" in told[0] and "no gradient ever" in told[0]
    lines = (tmp_path / "anneal" / "events.jsonl").read_text().splitlines()
    assert [e for e in map(json.loads, lines) if e["event"] == "unseen_token"]
