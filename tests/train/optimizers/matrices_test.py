# SPDX-License-Identifier: Apache-2.0
import jax
import pytest
import tiny_optimizer as tiny
import tiny_run

from midjax import trees
from midjax.model import architecture, transformer
from midjax.train.optimizers import matrices, optimizer

D, HEADS, H, F, V, E = 16, 4, 4, 32, 64, 2


def shapes():
    """Of a model with every parameter that there is."""
    model = tiny_run.model(
        norm="layer", qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True, qk_norm="whole",
        experts=architecture.Experts(count=E, per_token=1, ffn_dim=8), dense_layers=(0,),
    )  # fmt: skip
    assert (model.dim, model.heads, model.head_dim, model.ffn_dim) == (D, HEADS, H, F)
    return {name: x.shape for name, x in trees.named_leaves(transformer.abstract(model))}


def test_rows_are_what_a_product_sums_over_and_columns_what_it_gives():
    found = shapes()
    axes = matrices.axes(found)
    sizes = {name: of.sizes(found[name]) for name, of in axes.items() if of.rows}
    kv = found["layers/wk"][2]
    assert sizes == {
        "embed": (V, D), "head": (D, V), "layers/wq": (D, HEADS * H), "layers/wk": (D, kv * H),
        "layers/wv": (D, kv * H), "layers/wo": (HEADS * H, D), "layers/w_gate": (D, F),
        "layers/w_up": (D, F), "layers/w_down": (F, D), "layers/router": (D, E),
        "layers/expert_gate": (D, 8), "layers/expert_up": (D, 8), "layers/expert_down": (8, D),
    }  # fmt: skip
    for name, of in axes.items():
        layers, experts = name.startswith("layers/"), name.startswith("layers/expert")
        assert len(of.stack) == layers + experts, name
        assert of.stack + of.within == tuple(range(len(found[name]))), name


@pytest.mark.parametrize("kind", tiny.EVERY)
def test_every_parameter_of_a_model_has_its_rules(kind):
    config, found = tiny.EVERY[kind], shapes()
    made = optimizer.make(config)
    tree = trees.nested({name: jax.ShapeDtypeStruct(s, "float32") for name, s in found.items()})
    jax.eval_shape(made.init, tree)
    for name, rate in optimizer.decay(config, found).items():
        small = name.endswith(("norm", "bias"))
        assert rate == (0.0 if small or name == "embed" else 0.1), name
    tree["layers"]["w_new"] = tree["layers"]["wq"]
    with pytest.raises(ValueError, match=r"decay_rules: no rule matches .* 'layers/w_new'"):
        jax.eval_shape(made.init, tree)


def test_a_parameter_without_axes_is_refused():
    with pytest.raises(ValueError, match=r"matrices._RULES: no rule matches .* 'layers/w_new'"):
        matrices.axes({"layers/w_new": (2, 3, 4)})
