# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: parity with transformers, exact round trips, and what is refused."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_model

from midjax.model import hf, transformer


def config_of(kind="none", **kwargs):
    # head_dim = dim / heads, as is usual.
    return tiny_model.config(rope=tiny_model.ROPES[kind], head_dim=8, **kwargs)


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def logits(config, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    apply = jax.jit(transformer.apply, static_argnums=0)
    return np.asarray(apply(config, params, tokens, jnp.ones_like(positions), positions))


def edit(folder: pathlib.Path, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture
def folder(tmp_path):
    config = config_of()
    hf.save(str(tmp_path), config, tiny_model.params(config), "float32")
    return tmp_path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", sorted(tiny_model.ROPES))
def test_transformers_computes_our_logits(kind, tied, tmp_path):
    """Our weights and config.json, read by them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = config_of(kind, tied_head=tied)
    params = tiny_model.params(config)
    hf.save(str(tmp_path), config, params, "float32")
    theirs, info = transformers.LlamaForCausalLM.from_pretrained(
        str(tmp_path), attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = np.random.default_rng(1).integers(0, 96, (2, 100)).astype(np.int32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(logits(config, params, jnp.asarray(tokens)), want, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_we_compute_the_logits_of_transformers(tied, tmp_path):
    """Their weights and config.json, as they write them, read by us."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    theirs = transformers.LlamaForCausalLM(settings).eval()
    # Many files with an index, as large checkpoints have.
    theirs.save_pretrained(str(tmp_path), max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    config, params = hf.load(str(tmp_path))
    assert (config.tied_head, config.rope) == (tied, tiny_model.YARN)
    tokens = np.random.default_rng(1).integers(0, 96, (2, 100)).astype(np.int32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(logits(config, params, jnp.asarray(tokens)), want, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_save_load_save_load_is_bit_identical(tied, dtype, tmp_path):
    config = config_of("yarn", tied_head=tied, param_dtype=dtype)
    params = tiny_model.params(config)
    first, second = tmp_path / "first", tmp_path / "second"
    hf.save(str(first), config, params, dtype, ids={"bos_token_id": 1, "eos_token_id": 2})
    config_1, params_1 = hf.load(str(first))
    assert config_1 == config
    assert bits(params_1) == bits(params)
    hf.save(str(second), config_1, params_1, dtype, ids={"bos_token_id": 1, "eos_token_id": 2})
    config_2, params_2 = hf.load(str(second))
    assert (config_2, bits(params_2)) == (config_1, bits(params_1))
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_file_is_what_the_safetensors_library_reads(tmp_path):
    config = config_of()
    params = tiny_model.params(config)
    hf.save(str(tmp_path), config, params, "bfloat16")
    tensors = safetensors.numpy.load_file(str(tmp_path / "model.safetensors"))
    q_proj = tensors["model.layers.1.self_attn.q_proj.weight"]
    # Row n * H + h of q_proj makes feature h of head n.
    want = np.asarray(params["layers"]["wq"][1, :, 2, 5].astype(jnp.bfloat16))
    np.testing.assert_array_equal(q_proj[2 * config.head_dim + 5], want)
    assert sum(x.size for x in tensors.values()) == transformer.parameter_count(config)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_sharded_parameters_are_saved_whole(tmp_path):
    from midjax.model import sharding

    config = config_of()
    params = tiny_model.params(config)
    mesh = sharding.make(sharding.Mesh(data=1, fsdp=-1, tensor=1))
    placed = jax.device_put(params, sharding.tree(mesh, transformer.logical_axes(config), params))
    for name, tree in (("plain", params), ("sharded", placed)):
        hf.save(str(tmp_path / name), config, tree, "float32")
    assert (
        len({(tmp_path / n / "model.safetensors").read_bytes() for n in ("plain", "sharded")}) == 1
    )


def test_float16_is_read_exactly_as_float32(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(str(path))
    halves = {name: x.astype(np.float16) for name, x in tensors.items()}
    safetensors.numpy.save_file(halves, str(path))
    config, params = hf.load(str(folder))
    assert config.param_dtype == "float32"
    want = halves["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["embed"], want)


def test_numerics_are_the_callers(folder):
    config, _ = hf.load(str(folder), compute_dtype="bfloat16", remat="full", loss_chunk_tokens=64)
    assert (config.compute_dtype, config.remat, config.loss_chunk_tokens) == (
        "bfloat16",
        "full",
        64,
    )


def test_unknown_model_type_lists_the_known(folder):
    edit(folder, model_type="mamba")
    with pytest.raises(ValueError, match="'mamba' is not supported; supported: gemma2, "):
        hf.load(str(folder))


def test_pickles_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickles \(pytorch_model\.bin\).*save_pretrained"):
        hf.load(str(folder))


def test_no_weights_no_config_no_folder(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        hf.load(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError):
        hf.load(str(folder))


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        hf.load(str(folder))


def test_a_missing_file_of_the_index(folder):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00001-of-00002.safetensors, which is not there"):
        hf.load(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"1 missing \['lm_head\.weight'\]"),
        (
            lambda t: t.update({"model.norm.bias": np.zeros(3)}),
            r"1 unknown \['model\.norm\.bias'\]",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(8)}), r"shape \(8,\).* asks for \(32,\)"),
    ],
)
def test_tensors_that_do_not_fit(folder, change, message):
    path = str(folder / "model.safetensors")
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file({k: v.astype(np.float32) for k, v in tensors.items()}, path)
    with pytest.raises(ValueError, match=message):
        hf.load(str(folder))


def test_quantized_tensors_are_refused(folder):
    path = str(folder / "model.safetensors")
    tensors = safetensors.numpy.load_file(path)
    tensors["model.norm.weight"] = np.ones(32, np.int8)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="type I8 are not supported; supported: F32, F16, BF16"):
        hf.load(str(folder))


def test_old_buffers_are_ignored_and_a_tied_copy_must_agree(folder):
    path = str(folder / "model.safetensors")
    tensors = safetensors.numpy.load_file(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    safetensors.numpy.save_file(tensors, path)
    hf.load(str(folder))
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        hf.load(str(folder))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, path)
    assert "head" not in hf.load(str(folder))[1]


def test_saving_refuses_what_would_mislead(folder):
    config = config_of()
    params = tiny_model.params(config)
    with pytest.raises(ValueError, match=r"layers/w_up is \(3, 32, 48\), must be \(3, 32, 64\)"):
        hf.save(str(folder), dataclasses.replace(config, ffn_dim=64), params, "float32")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="already holds model-00001"):
        hf.save(str(folder), config, params, "float32")


def test_a_bucket_is_refused_for_reading(folder, monkeypatch):
    monkeypatch.setattr(
        hf.files, "read_json", lambda _: json.loads((folder / "config.json").read_text())
    )
    with pytest.raises(ValueError, match="Copy it here first"):
        hf.load("gs://bucket/model")
