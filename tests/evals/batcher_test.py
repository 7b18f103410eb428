# SPDX-License-Identifier: Apache-2.0
"""The same tokens in any company, order, chunk and mesh: those of a loop over whole texts.

What needs four devices runs in a process that poses as having them: this file as a script.
"""

import dataclasses
import json
import pathlib
import sys

import devices
import jax
import numpy as np
import pytest
import tiny_model

from midjax.evals import batch_steps, batcher, sampling
from midjax.model import architecture, sharding, transformer

# Key heads that tensor = 2 does not divide.
CONFIG = tiny_model.config(
    layers=2,
    kv_heads=1,
    layer_pattern=("window", "full"),
    window_tokens=6,
    rope=tiny_model.YARN,
    initializer_std=0.4,
)
EXPERTS = architecture.Experts(count=4, per_token=2, ffn_dim=24)
VOCAB = 90  # ids 90..95 pad the embedding
NEW = (4, 12, 8, 14, 5, 11)
LENGTHS = (13, 9, 17, 3, 12, 7)  # with what follows 17..32


def asked(prompt, sample=0, new=8, temperature=1.0, top_p=0.9):
    return batcher.Asked(
        prompt=tuple(prompt),
        max_new_tokens=new,
        temperature=temperature,
        top_p=top_p,
        key=sampling.key_of(3, prompt, sample),
    )


def all_asked():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]
    drawn = [asked(prompt, new=new) for prompt, new in zip(prompts, NEW, strict=True)]
    return [*drawn, asked(prompts[0], temperature=0.0), asked(prompts[2], 1, top_p=1.0)]


def model(params, **kwargs):
    given = {"config": CONFIG, "vocab_size": VOCAB, "eos_ids": (), "chunk_tokens": 5}
    return batcher.Model(params=params, **(given | kwargs))


@pytest.fixture(scope="module")
def params():
    return tiny_model.params(CONFIG)


@pytest.fixture(scope="module")
def alone(params):
    """The new tokens of each, one whole forward pass per token."""
    apply = jax.jit(transformer.apply, static_argnums=0)
    choose = jax.jit(sampling.choose, static_argnums=0)

    def one(of):
        tokens = list(of.prompt)
        for number in range(of.max_new_tokens):
            whole, inside = np.zeros((1, 32), np.int32), np.arange(32) < len(tokens)
            whole[0, : len(tokens)] = tokens
            segments, positions = inside[None].astype(np.int32), np.arange(32, dtype=np.int32)[None]
            logits = apply(CONFIG, params, whole, segments, positions)[:, len(tokens) - 1, :VOCAB]
            settings = (np.array([x], np.float32) for x in (of.temperature, of.top_p))
            number = np.array([number], np.int32)
            tokens.append(int(choose("nucleus", logits, of.key[None], number, *settings)[0]))
        return tokens[len(of.prompt) :]

    return [one(of) for of in all_asked()]


def test_as_whole_texts_in_any_batch_and_order(params, alone):
    wanted = all_asked()
    assert batcher.continuations(model(params), wanted) == alone
    assert all(token < VOCAB for new in alone for token in new)
    # Three rows for eight: filled anew, packed otherwise, and looked at more seldom.
    few = model(params, batch_rows=3, chunk_tokens=7)
    assert batcher.continuations(few, wanted[::-1]) == alone[::-1]


def test_a_cache_shrinks_with_what_is_written(params, alone, monkeypatch):
    """Fewer rows for the last ones, and fewer slots where the next are young: the same tokens."""
    monkeypatch.setattr(batcher, "_LEAST_TOKENS_LEFT", 1)
    monkeypatch.setattr(batcher, "_LEAST_ROWS", 1)
    monkeypatch.setattr(batcher, "_LEAST_SLOTS", 8)
    chunk, shapes = batch_steps.chunk, []

    def seen(how, params, cache, *rest):
        shapes.append(cache.values[0].shape[::2])  # rows, slots
        return chunk(how, params, cache, *rest)

    monkeypatch.setattr(batch_steps, "chunk", seen)
    assert batcher.continuations(model(params, batch_rows=4), all_asked()) == alone
    assert [rows for rows, _ in shapes] == [4, 4, 4, 4, 1]

    pairs = [[asked([first, 2, number], new=28) for number in (3, 4)] for first in (5, 6)]
    two = model(params, batch_rows=2)
    want = [new for pair in pairs for new in batcher.continuations(two, pair)]
    shapes.clear()
    assert batcher.continuations(two, [*pairs[0], *pairs[1]]) == want
    slots = [slots for _, slots in shapes]
    assert slots == [16, 16, 32, 32, 32, 32] * 2


def test_ends(params, alone):
    wanted = all_asked()
    first = alone[5][1]
    found = batcher.continuations(model(params, eos_ids=(first, 95)), wanted)
    assert found == [new[: new.index(first)] if first in new else new for new in alone]
    assert len(found[5]) <= 1

    seen = []

    def ended(grown):
        seen.append(sorted(grown))
        assert all(list(new) == alone[number][: len(new)] for number, new in grown.items())
        return {number for number, new in grown.items() if len(new) >= 3}

    found = batcher.continuations(model(params), wanted, ended)
    # The first token, then a chunk of 5: nobody is asked a third time.
    assert found == [new[:6] for new in alone]
    assert seen == [list(range(8))] * 2


def test_groups_are_of_like_length_and_full():
    lengths = [100, 7, 90, 8, 60, 9, 10]
    listed = [asked([0] * (length - 4), new=4) for length in lengths]
    assert list(batcher._groups(listed, 2)) == [[0, 2], [4, 6], [5, 3], [1]]
    assert list(batcher._groups(listed, 8)) == [[0, 2, 4, 6, 5, 3, 1]]


@pytest.mark.parametrize("field", [{"batch_rows": 0}, {"chunk_tokens": 0}, {"vocab_size": 97}])
def test_bad_fields_are_refused(field):
    with pytest.raises(ValueError, match=r"must be 1.*got"):
        model({}, **field)


def on_mesh(config, sizes):
    mesh = sharding.make(sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes)))
    shapes, axes = transformer.abstract(config), transformer.logical_axes(config)
    params = jax.device_put(tiny_model.params(config), sharding.tree(mesh, axes, shapes))
    found = batcher.continuations(model(params, config=config, jax_mesh=mesh), all_asked())
    assert not jax.tree.leaves(params)[0].is_deleted()
    return found


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    out = tmp_path_factory.mktemp("batcher") / "out.json"
    devices.run_script(__file__, out)
    return json.loads(out.read_text())


def test_the_mesh_changes_no_token(four_devices, alone):
    """With experts, which one device has too: the script computes that as well."""
    assert four_devices["fsdp x tensor"] == alone
    assert four_devices["expert x context"] == four_devices["experts"]


def main(out):
    mixture = dataclasses.replace(CONFIG, experts=EXPERTS, dense_layers=(0,))
    found = {
        "fsdp x tensor": on_mesh(CONFIG, {"fsdp": 2, "tensor": 2}),
        "expert x context": on_mesh(mixture, {"expert": 2, "context": 2}),
        "experts": batcher.continuations(
            model(tiny_model.params(mixture), config=mixture), all_asked()
        ),
    }
    pathlib.Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
