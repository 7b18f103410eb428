# SPDX-License-Identifier: Apache-2.0
"""llama2.c's files: the real model against its own algorithm in NumPy, and every broken file."""

import struct

import imported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from midjax import checkpoint
from midjax.evals import batcher, generate, requests
from midjax.importing import foreign, llama2c, recipe
from midjax.model import rope, transformer

STORIES = imported.STORIES / "stories260K.bin"
# What llama2.c prints for this file at temperature 0 (its doc/stories260K.md).
STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One \
day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, \
"I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom \
said, "Don't worry, Lily. We can help you."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama2c") / "run"
    recipe.run(imported.importing(folder, imported.stories_source()))
    return str(folder)


@pytest.fixture(scope="module")
def model():
    return llama2c.config_of(llama2c.read_header(str(STORIES)))


@pytest.fixture(scope="module")
def params(run_dir, model):
    return imported.restored(run_dir, 0, model)[0]


@pytest.fixture(scope="module")
def tokenizer(run_dir):
    return tokenizers.Tokenizer.from_file(f"{run_dir}/tokenizer/tokenizer.json")


def stories(tokenizer, length=512):
    """Rows of TinyStories as llama2.c trains and scores them: stories in a stream, BOS before each.

    Returns inputs and targets [rows, length].
    """
    text = (imported.DATA / "tinystories" / "sample.txt").read_text()
    texts = [story.strip() for story in text.split("<|endoftext|>") if story.strip()]
    found = tokenizer.encode_batch(texts, add_special_tokens=False)
    stream = np.concatenate([[1, *x.ids] for x in found])
    rows = (len(stream) - 1) // length
    return (stream[i : i + rows * length].reshape(rows, length) for i in (0, 1))


def reference(path, tokens):
    """Logits [T, V] by run.c's algorithm, in float64 from the file's own layout."""
    data = path.read_bytes()
    D, F, L, N, K, V, S = struct.unpack_from("<7i", data)
    H, at = D // N, 28

    def take(*shape):
        nonlocal at
        size = int(np.prod(shape))
        found = np.frombuffer(data, "<f4", size, at).reshape(shape).astype(np.float64)
        at += 4 * size
        return found

    embed, attn_norm = take(V, D), take(L, D)
    wq, wk, wv, wo = take(L, N * H, D), take(L, K * H, D), take(L, K * H, D), take(L, D, N * H)
    ffn_norm, w1, w2, w3, norm = take(L, D), take(L, F, D), take(L, D, F), take(L, F, D), take(D)
    assert at + 4 * S * H == len(data)  # the two tables
    positions = np.arange(len(tokens))
    turn = np.exp(1j * positions[:, None] / 10000.0 ** (np.arange(0, H, 2) / H))

    def rms(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def turned(x, heads):
        pairs = x.reshape(len(x), heads, H // 2, 2)
        z = (pairs[..., 0] + 1j * pairs[..., 1]) * turn[:, None]
        return np.stack([z.real, z.imag], -1).reshape(len(x), heads, H)

    x = embed[tokens]
    for i in range(L):
        y = rms(x, attn_norm[i])
        q, k = turned(y @ wq[i].T, N), turned(y @ wk[i].T, K)
        v = (y @ wv[i].T).reshape(len(x), K, H)
        k, v = np.repeat(k, N // K, 1), np.repeat(v, N // K, 1)
        scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(H)
        scores = np.where(positions[:, None] >= positions, scores, -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        x = x + np.einsum("nts,snh->tnh", share, v).reshape(len(x), D) @ wo[i].T
        y = rms(x, ffn_norm[i])
        gate = y @ w1[i].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w3[i].T)) @ w2[i].T
    return rms(x, norm) @ embed.T


def logits(model, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jax.jit(transformer.apply, static_argnums=0)(
        model, params, jnp.asarray(tokens), jnp.ones_like(positions), positions
    )


def test_logits_are_those_of_llama2c(model, params, tokenizer):
    tokens, _ = stories(tokenizer)
    found = logits(model, params, tokens[:1, :200])
    np.testing.assert_allclose(found[0], reference(STORIES, tokens[0, :200]), atol=2e-4)


def test_the_story_is_the_one_that_llama2c_tells(model, params, tokenizer):
    """To its last character, from BOS alone: 256 tokens, as many as it writes by default."""
    ours = batcher.Model(config=model, params=params, vocab_size=512, eos_ids=(1,))
    sampler = generate.Sampler(model=ours, tokenizer=tokenizer, bos_id=1)
    asked = requests.Generate(context="", stop=(), max_new_tokens=256)
    ((found,),) = sampler.generate([asked])
    assert found.strip() == STORY


def test_the_loss_on_tinystories(model, params, tokenizer):
    """llama2.c reports 1.297 nats per token on its own validation stories. Those here differ in
    difficulty: 1.284 for the first 8,192 tokens, 1.396 for all.
    """
    tokens, targets = stories(tokenizer)

    def losses(scores, wanted):
        return -np.take_along_axis(np.asarray(jax.nn.log_softmax(scores)), wanted[..., None], -1)

    found = np.concatenate(
        [
            losses(logits(model, params, tokens[i : i + 8]), targets[i : i + 8])
            for i in range(0, 56, 8)
        ]
    )
    theirs = losses(reference(STORIES, tokens[0]), targets[0])
    np.testing.assert_allclose(found[0], theirs, atol=2e-4)
    assert tokens.shape == (56, 512)
    assert found[:16].mean() == pytest.approx(1.2841, abs=2e-4)
    assert found.mean() == pytest.approx(1.3960, abs=2e-4)


def test_what_the_header_says(model, run_dir):
    assert transformer.parameter_count(model) == 260_032
    assert (model.dim, model.layers, model.heads, model.kv_heads) == (64, 5, 8, 4)
    assert (model.vocab_size, model.context_tokens, model.tied_head) == (512, 512, True)
    assert model.rope == rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="none"))
    manifest = checkpoint.read_facts(run_dir, 0)["manifest"]
    assert manifest["adam_count"] is None and manifest["lr"] == {"last": None, "next": None}
    assert set(manifest["norms"]) == {"params"}


# ---- both formats, written here ----

SIZES = {"D": 8, "F": 12, "L": 2, "N": 2, "K": 1, "V": 10, "S": 6}


def written(path, version, *, tied):
    """A small random file; returns its arrays by llama2.c's names."""
    D, F, L, N, K, V, S = SIZES.values()
    H = D // N
    rng = np.random.default_rng(0)
    shapes = {
        "tok_embeddings": (V, D), "attention_norm": (L, D), "wq": (L, D, D), "wk": (L, K * H, D),
        "wv": (L, K * H, D), "wo": (L, D, D), "ffn_norm": (L, D), "w1": (L, F, D),
        "w2": (L, D, F), "w3": (L, F, D), "norm": (D,), "output": (V, D),
    }  # fmt: skip
    arrays = {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    sizes = (D, F, L, N, K, V if version or tied else -V, S)
    if version:
        head = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, tied).ljust(256, b"\0")
        order = ["attention_norm", "ffn_norm", "norm", "tok_embeddings", "wq", "wk", "wv", "wo",
                 "w1", "w2", "w3", "output"]  # fmt: skip
    else:
        head = struct.pack("<7i", *sizes)
        order = [*list(shapes)[:-1], "table", "table", "output"]
    table = np.zeros((S, H // 2), "<f4")
    parts = [arrays.get(name, table) for name in order if not (tied and name == "output")]
    path.write_bytes(head + b"".join(x.tobytes() for x in parts))
    return arrays


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_both_formats(tmp_path, version, tied):
    arrays = written(tmp_path / "m.bin", version, tied=tied)
    source = llama2c.Llama2c(path=str(tmp_path / "m.bin"), tokenizer=None)
    opened = source.open(None)
    recipe.run(imported.importing(tmp_path / "run", source))
    found, _ = imported.restored(str(tmp_path / "run"), 0, opened.model)
    assert opened.model.tied_head is tied and ("head" in found) is not tied
    np.testing.assert_array_equal(found["embed"], arrays["tok_embeddings"])
    np.testing.assert_array_equal(found["layers"]["w_down"][1], arrays["w2"][1].T)
    np.testing.assert_array_equal(found["layers"]["mlp_norm"], arrays["ffn_norm"])
    # Head 1 of layer 0: rows 0, 2, 1, 3 of it, as pairs (0, 1) and (2, 3) become (0, 2), (1, 3).
    query = arrays["wq"][0].reshape(2, 4, 8)[1][[0, 2, 1, 3]]
    np.testing.assert_array_equal(found["layers"]["wq"][0, :, 1], query.T)
    np.testing.assert_array_equal(found["layers"]["wv"][0, :, 0], arrays["wv"][0].T)
    np.testing.assert_array_equal(found["layers"]["wo"][0, 1], arrays["wo"][0].T[4:])
    if not tied:
        np.testing.assert_array_equal(found["head"], arrays["output"].T)


# ---- mistakes ----


def changed(tmp_path, change):
    file = tmp_path / "m.bin"
    file.write_bytes(change(STORIES.read_bytes()))
    return str(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"GGUF" + b[4:], "is no file of llama2.c: it begins neither"),
        (lambda b: b"PK\x03\x04" + bytes(500), "is no file of llama2.c: it begins neither"),
        (lambda b: b[:10], "has 10 bytes: it is no file of llama2.c"),
        (lambda b: b[:-4], "It is truncated: fetch it again"),
        (lambda b: b[:5000], "It is truncated: fetch it again"),
        (lambda b: b + bytes(4), "It is another format"),
        (lambda b: struct.pack("<Ii", 0x616B3432, 2) + b, "is of llama2.c's version 2"),
        (lambda b: struct.pack("<Ii", 0x616B3432, 1) + bytes(90), "is truncated: its header"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, change, message):
    with pytest.raises(foreign.ForeignError, match=message):
        llama2c.read_header(changed(tmp_path, change))


def test_a_model_that_contradicts_the_file(tmp_path):
    with pytest.raises(foreign.ForeignError, match="vocab_size: there 512, given 128"):
        imported.stories_source().open(imported.model())
    with pytest.raises(FileNotFoundError):
        imported.stories_source(path=str(tmp_path / "none.bin")).open(None)
