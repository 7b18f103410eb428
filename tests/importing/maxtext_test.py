# SPDX-License-Identifier: Apache-2.0
"""MaxText's checkpoints: the real one goes on as MaxText went on, and mistakes are named."""

import math
import shutil

import imported
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from midjax import checkpoint, foreign_item
from midjax.importing import foreign, maxtext, maxtext_blocks, recipe
from midjax.model import rope, rotation, transformer
from midjax.train import step
from midjax.train.optimizers import adamw, optimizer

ADAM = adamw.AdamW(
    b1=0.9, b2=0.95, eps=1e-8, mu_dtype="float32", nu_dtype="float32", weight_decay=0.1,
    clip_norm=1.0, decay_rules={".*": 1.0},
)  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maxtext") / "run"
    recipe.run(imported.importing(folder, imported.maxtext_source(), imported.model()))
    return str(folder)


def test_the_next_15_steps_are_those_of_maxtext(run_dir):
    logged = imported.metrics()
    rates = jnp.array([row["current_learning_rate"] for row in logged], jnp.float32)
    tx = optimizer.make(ADAM)
    params, opt_state = imported.restored(run_dir, 17, imported.model(), tx)
    state = step.TrainState(
        step=jnp.int32(17), schedule_count=jnp.int32(17), params=params, opt_state=opt_state
    )
    train_step = jax.jit(
        step.make_train_step(
            imported.model(), step.Loss(z_loss_weight=0.0), tx, lambda count: rates[count],
            sources=1, microbatches=1,
        )
    )  # fmt: skip
    batch = imported.the_batch()
    for row in logged[17:]:
        state, found = train_step(state, batch)
        assert float(found["loss"]) == pytest.approx(row["loss"], rel=1e-5)
        assert float(found["grad_norm"]) == pytest.approx(row["grad_norm"], rel=1e-5)
        assert float(found["param_norm"]) == pytest.approx(row["param_norm"], rel=1e-5)
        assert float(found["lr"]) == pytest.approx(row["current_learning_rate"], rel=1e-5)
    assert int(state.step) == 32 and len(logged[17:]) == 15


def test_what_was_saved_is_what_is_there(run_dir):
    item = foreign_item.ForeignItem(str(imported.DATA / "maxtext_tiny" / "16" / "items"))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    theirs = item.read(dict.fromkeys(item.arrays, here))
    tx = optimizer.make(ADAM)
    params, opt_state = imported.restored(run_dir, 17, imported.model(), tx)
    trees = {"params/": params, "opt_state/0/mu/": opt_state["moments"]["mu"],
             "opt_state/0/nu/": opt_state["moments"]["nu"]}  # fmt: skip
    for prefix, ours in trees.items():
        of = f"{prefix}params/decoder/layers"
        query = np.asarray(theirs[f"{of}/self_attention/query/kernel"])
        out = np.asarray(theirs[f"{of}/self_attention/out/kernel"])
        norm = np.asarray(theirs[f"{of}/post_self_attention_layer_norm/scale"])
        for layer in range(3):
            assert np.array_equal(ours["layers"]["wq"][layer], query[:, layer])
            assert np.array_equal(ours["layers"]["wo"][layer], out[:, layer])
            assert np.array_equal(ours["layers"]["mlp_norm"][layer], norm[:, layer])
        head = theirs[f"{prefix}params/decoder/logits_dense/kernel"]
        assert np.array_equal(ours["head"], head)
    assert int(opt_state["adam_count"]) == int(theirs["opt_state/0/count"]) == 17
    manifest = checkpoint.read_facts(run_dir, 17)["manifest"]
    assert manifest["schedule_count"] == int(theirs["opt_state/2/count"]) == 17


def test_norms_counts_and_rates_are_in_the_manifest(run_dir):
    item = foreign_item.ForeignItem(str(imported.DATA / "maxtext_tiny" / "16" / "items"))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    theirs = item.read(dict.fromkeys(item.arrays, here))
    facts = checkpoint.read_facts(run_dir, 17)
    manifest = facts["manifest"]
    for name, prefix in (
        ("params", "params/"),
        ("mu", "opt_state/0/mu/"),
        ("nu", "opt_state/0/nu/"),
    ):
        arrays = [x for key, x in theirs.items() if key.startswith(prefix)]
        norm = math.sqrt(sum(float(np.square(np.float64(x)).sum()) for x in arrays))
        assert manifest["norms"][name] == pytest.approx(norm, rel=1e-6)
    assert manifest["norms"]["params"] == pytest.approx(imported.metrics()[16]["param_norm"])
    assert (facts["step"], manifest["adam_count"], manifest["schedule_count"]) == (17, 17, 17)
    assert manifest["lr"] == {"last": 1e-3, "next": 1e-3} and manifest["peak_lr"] == 1e-3
    assert facts["data"] == {} and manifest["lineage"][0]["imported from"]["format"] == "maxtext"


# ---- names of every block and layout, on arrays that are made up ----


def made_up(source, model, *, scanned, unit, words=()):
    """Arrays of a MaxText tree whose numbers say their layer; unit layers to a scanned block.

    Returns the arrays, and what each of ours must be: name -> [layers, ...].
    """
    rng = np.random.default_rng(0)
    block = maxtext_blocks.BLOCKS[source.decoder_block]
    tree, depth, root = transformer.abstract(model), model.layers, "params/params/"
    arrays = {
        f"{root}token_embedder/embedding": rng.normal(size=tree["embed"].shape),
        f"{root}decoder/decoder_norm/scale": rng.normal(size=tree["final_norm"].shape),
    }
    if "head" in tree:
        arrays[f"{root}decoder/logits_dense/kernel"] = rng.normal(size=tree["head"].shape)
    wanted = {}
    for ours, target in tree["layers"].items():
        each = [rng.normal(size=target.shape[1:]) for _ in range(depth)]
        wanted[ours] = np.stack(each)
        flat = ours in ("q_norm", "k_norm") and model.qk_norm == "whole"
        each = [x.reshape(-1) if flat else x for x in each]
        name = block.names[ours]
        for layer, x in enumerate(each):
            if not scanned:
                place = f"layers_{layer // len(words) if words else layer}"
                word = words[layer % unit] if words else ""
                arrays[f"{root}decoder/{place}/{name.format(word)}"] = x
            elif layer >= depth // unit * unit:
                arrays[f"{root}decoder/layers_remainder/layers_{layer % unit}/{name}"] = x
        for i in range(unit if scanned else 0):
            inner = name.format(words[i]) if words else f"layers_{i}/{name}" if unit > 1 else name
            units = each[i : depth // unit * unit : unit]
            arrays[f"{root}decoder/layers/{inner}"] = np.stack(units, source.param_scan_axis)
    return arrays, wanted


def taken(source, model, arrays):
    """Our arrays, made of theirs by the source's own names."""
    names = maxtext._Names(source, model, arrays, "params/params/")
    return {
        ours: take.change(*[jnp.asarray(arrays[x]) for x in take.theirs])
        for ours, take in names.takes().items()
    }


CASES = {
    "llama2": (1, ()),
    "mixtral": (1, ()),
    "qwen2": (1, ()),
    "qwen3_moe": (1, ()),
    "gemma2": (2, ("local", "global")),
    "gemma3": (6, ()),
    "olmo3": (4, ()),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("block", CASES)
def test_layers_come_in_the_order_of_depth(block, scanned, axis):
    unit, words = CASES[block]
    source = imported.maxtext_source(decoder_block=block, param_scan_axis=axis)
    model = imported.model(**imported.BLOCK_MODELS[block])
    arrays, wanted = made_up(source, model, scanned=scanned, unit=unit, words=words)
    found = taken(source, model, arrays)
    assert set(found) == {f"layers/{name}" for name in wanted} | {"embed", "final_norm"} | (
        set() if model.tied_head else {"head"}
    )
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[f"layers/{name}"], np.float32(value), err_msg=name)
    used = {
        x
        for take in maxtext._Names(source, model, arrays, "params/params/").takes().values()
        for x in take.theirs
    }
    assert used == set(arrays)


def test_fused_products_are_taken_apart():
    model = imported.model(qkv_bias=True)
    rng = np.random.default_rng(1)
    N, K, H, D, F, L = 4, 2, 8, 32, 64, 3
    parts = {"query": (N, H), "key": (K, H), "value": (K, H)}
    kernels = {n: rng.normal(size=(L, D, *shape)) for n, shape in parts.items()}
    biases = {n: rng.normal(size=(L, *shape)) for n, shape in parts.items()}
    gate, up = rng.normal(size=(2, L, D, F))
    of = "params/params/decoder/layers"

    def stacked(pieces, axis):
        return np.moveaxis(np.concatenate(list(pieces.values()), axis), 0, 1)

    arrays = {
        f"{of}/self_attention/qkv_proj/kernel": stacked(kernels, 2),
        f"{of}/self_attention/qkv_proj/bias": stacked(biases, 1),
        f"{of}/mlp/wi/kernel": np.moveaxis(np.stack([gate, up], 2), 0, 1),
    }
    takes = maxtext._Names(imported.maxtext_source(), model, arrays, "params/params/").takes()
    wanted = {"wq": kernels["query"], "wk": kernels["key"], "wv": kernels["value"],
              "q_bias": biases["query"], "k_bias": biases["key"], "v_bias": biases["value"],
              "w_gate": gate, "w_up": up}  # fmt: skip
    for name, value in wanted.items():
        take = takes[f"layers/{name}"]
        found = take.change(*[jnp.asarray(arrays[x]) for x in take.theirs])
        np.testing.assert_array_equal(found, np.float32(value), err_msg=name)


def test_interleaved_pairs_turn_as_theirs_do():
    """Rotating ours by halves is rotating theirs by neighbours, and putting it in our order."""
    rng = np.random.default_rng(2)
    theirs_BTNH = rng.normal(size=(2, 7, 3, 8)).astype(np.float32)
    positions_BT = np.tile(np.arange(7), (2, 1))
    angle_BTR = positions_BT[..., None] * 10000.0 ** (-np.arange(0, 8, 2) / 8)
    pairs = theirs_BTNH.reshape(2, 7, 3, 4, 2)
    turn = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle_BTR)[:, :, None]
    turned = np.stack([turn.real, turn.imag], -1).reshape(2, 7, 3, 8)
    cos, sin = rope.angles(imported.PLAIN, 8, jnp.asarray(positions_BT), None)
    ours = rotation.rotate(maxtext.halves(jnp.asarray(theirs_BTNH)), cos, sin)
    np.testing.assert_allclose(ours, maxtext.halves(jnp.asarray(turned)), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "interleaved"),
    [
        ({}, False),
        ({"model_name": "llama3.1-8b"}, True),
        ({"rope_type": "llama3.1"}, True),
        ({"rope_type": "yarn"}, True),
        ({"rope_type": "yarn", "rope_interleave": False}, False),
        # MaxText looks at the name of the model before it looks at the type.
        ({"model_name": "llama3.1-8b", "rope_type": "yarn", "rope_interleave": False}, True),
    ],
)
def test_the_order_of_pairs_follows_the_config_of_maxtext(fields, interleaved):
    source = imported.maxtext_source(**fields)
    assert source.interleaved is interleaved
    model = imported.model()
    arrays, wanted = made_up(source, model, scanned=True, unit=1)
    found = taken(source, model, arrays)
    for name in ("wq", "wk", "wv"):
        turned = interleaved and name != "wv"
        value = maxtext.halves(jnp.asarray(wanted[name])) if turned else np.float32(wanted[name])
        np.testing.assert_array_equal(found[f"layers/{name}"], value)


def test_norms_that_are_added_to_one_lose_one_but_their_moments_do_not():
    source = imported.maxtext_source(decoder_block="gemma")
    model = imported.model(tied_head=True, norm="rms_plus_one")
    takes = maxtext._Names(source, model, {}, "params/params/").takes()
    offsets = {name: take.offset for name, take in takes.items()}
    assert {name for name, offset in offsets.items() if offset == -1.0} == {
        "final_norm", "layers/attn_norm", "layers/mlp_norm",
    }  # fmt: skip


# ---- where moments and counts stand ----


class Item:
    """Numbers by name, as `foreign_item.ForeignItem` gives them."""

    def __init__(self, **counts):
        names = {name.replace("__", "/"): value for name, value in counts.items()}
        self.numbers = names
        self.arrays = {name: jax.ShapeDtypeStruct((), jnp.int32) for name in names}

    def read(self, shardings):
        return {name: jnp.int32(self.numbers[name]) for name in shardings}


EMBED = "token_embedder__embedding"


@pytest.mark.parametrize(
    ("prefix", "tree"),
    [
        ("opt_state__0__", "params__"),
        ("opt_state__", "params__"),
        ("opt_state__inner_state__0__", ""),
        ("opt_state__1__inner_state__2__", "params__"),
    ],
)
def test_moments_are_found_wherever_optax_nests_them(prefix, tree):
    item = Item(**{f"{prefix}nu__{tree}{EMBED}": 0, f"{prefix}mu__{tree}{EMBED}": 0,
                   f"{prefix}count": 5})  # fmt: skip
    state = maxtext._state(item, 3e-4, "x", "params/params/")
    at = prefix.replace("__", "/")
    moment = state["moment"]("mu", "params/params/decoder/decoder_norm/scale")
    assert moment == f"{at}mu/{tree.replace('__', '/')}decoder/decoder_norm/scale"
    assert (state["adam_count"], state["schedule_count"]) == (5, 5)
    assert state["lr"] == foreign.Rate(last=3e-4, next=3e-4, peak=3e-4)


def test_the_two_counts_are_told_apart():
    names = {f"opt_state__0__nu__params__{EMBED}": 0, "opt_state__0__count": 5,
             "opt_state__2__count": 9}  # fmt: skip
    state = maxtext._state(Item(**names), imported.schedule(), "x", "params/params/")
    assert (state["adam_count"], state["schedule_count"]) == (5, 9)
    assert state["lr"].next == imported.schedule().eta(9)


def test_moments_and_learning_rate_come_together():
    moments = Item(**{f"opt_state__0__nu__params__{EMBED}": 0, "opt_state__0__count": 5})
    with pytest.raises(foreign.ForeignError, match="say at which learning rate"):
        maxtext._state(moments, None, "x", "params/params/")
    with pytest.raises(foreign.ForeignError, match="has no moments of Adam"):
        maxtext._state(Item(step=3), 1e-3, "x", "params/params/")
    assert "moment" not in maxtext._state(Item(step=3), None, "x", "params/params/")


def test_two_optimizers_are_refused():
    two = Item(**{f"opt_state__{i}__nu__params__{EMBED}": 0 for i in (0, 1)})
    with pytest.raises(foreign.ForeignError, match="more than one optimizer"):
        maxtext._state(two, 1e-3, "x", "params/params/")


def test_the_fields_of_optax_have_the_names_that_are_looked_for():
    adam = optax.scale_by_adam().init({"w": jnp.zeros(2)})
    assert adam._fields == ("count", "mu", "nu")


# ---- mistakes ----


@pytest.mark.parametrize(
    ("fields", "model", "message"),
    [
        ({}, None, "does not say what its model is: give Import.model"),
        ({}, {"attention_scale": None}, "the factor is in the query weights"),
        ({"rope_type": "yarn"}, {}, "rope_type 'yarn' of the model 'default' has yarn"),
        ({"rope_type": "llama3.1"}, {"rope": rope.Rope(
            theta=5e5, scaling=rope.RopeScaling(kind="llama3", factor=32.0, low_freq_factor=1.0,
                high_freq_factor=4.0, original_context_tokens=8192))},
         "RopeScaling.factor is 32.0, and MaxText has 8.0 built in"),
        ({"decoder_block": "olmo3"}, {"layers": 4, "layer_pattern": ("window",) * 3 + ("full",),
            "window_tokens": 8, "norm_placement": "post", "qk_norm": "whole",
            "attention_scale": None}, "for models called olmo3"),
        ({}, {"ffn_dim": 48}, "layers/w_down is float32[3, 48, 32] here, and params/params/decoder/"
         "layers/mlp/wo/kernel float32[64, 3, 32] makes float32[3, 64, 32]"),
        ({}, {"layers": 4}, "layers/wq is float32[4, 32, 4, 8] here"),
        ({"param_scan_axis": 0}, {}, "layers/attn_norm is float32[3, 32] here"),
        ({"decoder_block": "qwen3"}, {"attention_scale": None, "qk_norm": "head"},
         "layers/q_norm needs params/params/decoder/layers/self_attention/query_norm/scale, which "
         "is not there"),
        ({}, {"tied_head": True, "logits_scale": 32**-0.5},
         "params/params/decoder/logits_dense/kernel float32[32, 128] is there and nothing uses it"),
        ({"learning_rate": None}, {}, "say at which learning rate"),
        ({}, {"param_dtype": "bfloat16"}, "would be rounded"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, fields, model, message):
    source = imported.maxtext_source(**fields)
    given = None if model is None else imported.model(**model)
    with pytest.raises(foreign.ForeignError) as error:
        recipe.run(imported.importing(tmp_path / "run", source, given))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_unknown_blocks_and_axes_are_refused():
    with pytest.raises(ValueError, match="'deepseek'; midjax computes llama2, mistral, mixtral"):
        imported.maxtext_source(decoder_block="deepseek")
    with pytest.raises(ValueError, match="param_scan_axis must be 0 or 1"):
        imported.maxtext_source(param_scan_axis=2)


def test_arrays_can_be_left_out_by_name_only(tmp_path):
    source = imported.maxtext_source()
    model = imported.model(tied_head=True, logits_scale=32**-0.5)
    record = recipe.run(
        imported.importing(tmp_path / "run", source, model, leave_out=("*/logits_dense/kernel",))
    )
    left = [name for name, why in record["left out"].items() if why == "named in Import.leave_out"]
    assert len(left) == 3 and all(name.endswith("logits_dense/kernel") for name in left)


def test_another_folder_and_a_damaged_file(tmp_path):
    source = imported.maxtext_source(path=str(tmp_path))
    with pytest.raises(checkpoint.CheckpointError, match="no PyTree item of Orbax"):
        source.open(imported.model())
    copied = tmp_path / "16"
    shutil.copytree(imported.DATA / "maxtext_tiny" / "16", copied)
    largest = max(
        (copied / "items" / "ocdbt.process_0" / "d").iterdir(), key=lambda p: p.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:1000])
    source = imported.maxtext_source(path=str(copied))
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        recipe.run(imported.importing(tmp_path / "run", source, imported.model()))
    assert not (tmp_path / "run").exists()
