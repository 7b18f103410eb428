# SPDX-License-Identifier: Apache-2.0
"""The train step against PyTorch: transformers' Llama, torch.optim.AdamW, torch's gradient clip."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run as tiny

from midjax.batches import batch as batch_lib
from midjax.model import hf, transformer
from midjax.train import guard
from midjax.train import step as step_lib
from midjax.train.optimizers import optimizer as optimizer_lib

LR, Z = 1e-2, 1e-2
B, T = 4, 16
OPTIMIZER = tiny.adamw(
    clip_norm=0.5, decay_rules={"embed|head|layers/w.*": 1.0, "(layers/)?[a-z]+_norm": 0.0}
)

# (loss, grad norm before the clip, update norm) of three updates, computed by PyTorch 2.13.0 and
# transformers 5.23.0 with `torch_reference` below; a test runs it again where they are installed.
GOLDEN = [
    (4.4247050285339355, 1.2757381200790405, 0.7933693385331532),
    (3.9154109954833984, 1.1226317882537842, 0.6555406758120881),
    (3.557063341140747, 0.9975252747535706, 0.5969651469187712),
]


def params():
    """Parameters from NumPy's Philox bits: the same in every version of everything."""
    shapes = transformer.abstract(tiny.model())
    leaves, structure = jax.tree.flatten(shapes)
    made = []
    for k, leaf in enumerate(leaves):
        bits = np.random.Philox(key=k).random_raw(leaf.size).astype(np.float64) / 2**64
        value = (bits - 0.5).reshape(leaf.shape)
        made.append(jnp.asarray(value * 0.5 if leaf.ndim > 2 or k in (0, 2) else value * 0.2 + 1))
    return jax.tree.unflatten(structure, [jnp.float32(x) for x in made])


def batch():
    """Two documents per row, one row with masked and one with padded places."""
    bits = np.random.Philox(key=99).random_raw(B * (T + 1))
    tokens = (bits % tiny.VOCAB).reshape(B, T + 1).astype(np.int32)
    segments = np.repeat(np.where(np.arange(T) < 6, 1, 2)[None], B, 0)
    segments[3, 11:] = 0
    positions = np.where(segments == 1, np.arange(T), np.arange(T) - 6) * (segments > 0)
    weights = (segments > 0).astype(np.float32)
    weights[1, 2:5] = 0.0
    source = np.repeat(np.array([0, 0, 1, 2])[:, None], T, 1)
    return batch_lib.Batch(
        tokens=tokens[:, :-1], targets=tokens[:, 1:], segments=segments.astype(np.int32),
        positions=positions.astype(np.int32), weights=weights, source=source.astype(np.int32),
    )  # fmt: skip


def make(microbatches=1, model=None, z=Z, optimizer=OPTIMIZER, spikes=None):
    chain = optimizer_lib.make(optimizer)
    made = step_lib.make_train_step(
        model or tiny.model(), step_lib.Loss(z_loss_weight=z), chain,
        lambda count: jnp.float32(LR), sources=3, microbatches=microbatches, spikes=spikes,
    )  # fmt: skip
    return chain, jax.jit(made)


def begin(chain, of=None):
    of = params() if of is None else of
    return step_lib.TrainState(
        step=jnp.int32(0), schedule_count=jnp.int32(0), params=of, opt_state=chain.init(of)
    )


def ours(updates=3):
    chain, train_step = make()
    state, rows = begin(chain), []
    for _ in range(updates):
        state, metrics = train_step(state, batch())
        rows.append(tuple(float(metrics[k]) for k in ("loss", "grad_norm", "update_norm")))
    return rows, state


def torch_reference(folder, updates=3):
    """The same updates in PyTorch, weights carried over by `hf.save`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hf.save(str(folder), tiny.model(), params(), "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="eager", dtype=torch.float32
    )
    data = {f: torch.from_numpy(np.array(getattr(batch(), f))) for f in batch_lib.FIELDS}
    same = data["segments"][:, :, None] == data["segments"][:, None, :]
    seen = same & torch.ones(T, T, dtype=torch.bool).tril()
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    named = dict(model.named_parameters())
    norms = [p for n, p in named.items() if "norm" in n]
    rest = [p for n, p in named.items() if "norm" not in n]
    adamw = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=LR, betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    rows = []
    for _ in range(updates):
        out = model(
            input_ids=data["tokens"].long(), attention_mask=mask,
            position_ids=data["positions"].long(),
        ).logits  # fmt: skip
        log_z = torch.logsumexp(out, -1)
        nll = log_z - out.gather(-1, data["targets"].long()[..., None])[..., 0]
        weight = data["weights"]
        loss = (nll * weight).sum() / weight.sum()
        adamw.zero_grad()
        (loss + Z * (log_z**2 * weight).sum() / weight.sum()).backward()
        before = {n: p.detach().clone() for n, p in named.items()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adamw.step()
        moved = sum(((p - before[n]).double() ** 2).sum() for n, p in named.items())
        rows.append((loss.item(), norm.item(), moved.sqrt().item()))
    return rows


def test_three_updates_against_the_golden_numbers_of_pytorch():
    for got, expected in zip(ours()[0], GOLDEN, strict=True):
        assert got == pytest.approx(expected, rel=2e-5)


def test_the_golden_numbers_are_pytorchs(tmp_path):
    for got, expected in zip(torch_reference(tmp_path), GOLDEN, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_add_up_to_the_batch(microbatches):
    """Rows with different numbers of loss-bearing tokens: a mean of means would differ."""
    (chain, one), (_, many) = make(), make(microbatches)
    (a, m), (b, n) = one(begin(chain), batch()), many(begin(chain), batch())
    for name in ("loss", "z_loss", "grad_norm", "update_norm", "nll_by_source", "weight_by_source"):
        np.testing.assert_allclose(m[name], n[name], rtol=1e-5)
    for x, y in zip(*map(jax.tree.leaves, (a.opt_state, b.opt_state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)


def test_losses_by_source_are_those_of_each_source_alone():
    chain, train_step = make()
    data = batch()
    _, metrics = train_step(begin(chain), data)
    assert metrics["weight_by_source"].tolist() == [2 * T - 3, T, 11]
    assert metrics["nll_by_source"].sum() / metrics["weight_by_source"].sum() == pytest.approx(
        float(metrics["loss"]), rel=1e-6
    )
    for k in range(3):
        alone = tiny.replace(data, weights=data.weights * (data.source == k))
        _, only = train_step(begin(chain), alone)
        assert float(only["loss"]) == pytest.approx(
            float(metrics["nll_by_source"][k] / metrics["weight_by_source"][k]), rel=1e-6
        )


def test_padding_and_masked_text_change_nothing():
    chain, train_step = make()
    data = batch()
    hole = data.weights == 0
    other = tiny.replace(data, targets=np.where(hole, 7, data.targets))
    other = tiny.replace(other, tokens=np.where(data.segments == 0, 9, other.tokens))
    (a, _), (b, _) = train_step(begin(chain), data), train_step(begin(chain), other)
    assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    chain, train_step = make()
    state, _ = train_step(begin(chain), batch())
    broken = tiny.replace(batch(), weights=np.where(np.arange(T) == 3, np.inf, batch().weights))
    after, metrics = train_step(state, broken)
    assert int(metrics["skipped"]) == 1 and int(after.step) == int(after.schedule_count) == 2
    for x, y in zip(
        *map(jax.tree.leaves, ((state.params, state.opt_state), (after.params, after.opt_state))),
        strict=True,
    ):
        assert (x == y).all()
    healthy, metrics = train_step(after, batch())
    assert int(metrics["skipped"]) == 0 and np.isfinite(float(metrics["loss"]))
    assert int(healthy.opt_state["adam_count"]) == 2


def test_the_loss_of_each_row_is_that_of_the_row_alone():
    """In the order of the rows, whatever the microbatches."""
    chain, one = make()
    data = batch()
    _, metrics = one(begin(chain), data)
    for k in range(B):
        alone = tiny.replace(data, weights=data.weights * (np.arange(B) == k)[:, None])
        _, only = one(begin(chain), alone)
        assert float(metrics["loss_by_row"][k]) == pytest.approx(float(only["loss"]), rel=1e-5)
    for microbatches in (2, 4):
        _, parts = make(microbatches)[1](begin(chain), data)
        np.testing.assert_allclose(parts["loss_by_row"], metrics["loss_by_row"], rtol=1e-5)


def test_a_spike_is_told_by_the_cross_entropy_without_z_loss():
    rule = guard.Spikes(window_steps=4, deviations=1.0, least_history_steps=2)
    chain, train_step = make(z=10.0, spikes=rule)
    state = tiny.replace(begin(chain), guard=guard.fresh(rule))
    for _ in range(2):
        state, metrics = train_step(state, batch())
        assert int(metrics["skipped"]) == 0 and float(metrics["z_loss"]) > 5
    assert float(state.guard.loss[1]) == float(metrics["loss"]) < 6
    assert float(state.guard.grad_norm[1]) == float(metrics["grad_norm"])
    spiky = tiny.replace(state, guard=tiny.replace(state.guard, loss=state.guard.loss / 2))
    after, metrics = train_step(spiky, batch())
    assert int(metrics["skipped"]) == guard.SPIKE and int(after.guard.count) == 2
    assert float(metrics["loss"]) > float(metrics["loss_limit"])
    assert (int(after.step), int(after.schedule_count)) == (3, 3)
    kept = lambda s: (s.params, s.opt_state, s.guard)  # noqa: E731
    for x, y in zip(*map(jax.tree.leaves, (kept(after), kept(spiky))), strict=True):
        assert (x == y).all()


def test_a_step_that_is_left_out_counts_and_changes_nothing_else():
    chain, _ = make()
    state = begin(chain)
    after, metrics = step_lib.leave_out(lambda count: 0.5 + count, 3, state)
    assert (int(after.step), int(after.schedule_count)) == (1, 1)
    assert after.params is state.params and after.opt_state is state.opt_state
    assert int(metrics["skipped"]) == guard.LEFT_OUT and float(metrics["lr"]) == 0.5
    assert np.isnan(metrics["loss"]) and metrics["weight_by_source"].tolist() == [0, 0, 0]


def test_a_batch_without_loss_moves_nothing_but_decay():
    chain, train_step = make(optimizer=tiny.adamw(weight_decay=0.0))
    empty = tiny.replace(batch(), weights=np.zeros((B, T), np.float32))
    state, metrics = train_step(begin(chain), empty)
    assert float(metrics["loss"]) == 0 and int(metrics["skipped"]) == 0
    for x, y in zip(*map(jax.tree.leaves, (state.params, params())), strict=True):
        assert (x == y).all()


def test_bfloat16_compute_stays_near_float32():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        chain, train_step = make(model=tiny.model(compute_dtype=dtype))
        state = begin(chain)
        for _ in range(3):
            state, metrics = train_step(state, batch())
        losses[dtype] = float(metrics["loss"])
        assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_bad_z_loss():
    with pytest.raises(ValueError, match="z_loss_weight must be 0 or more"):
        step_lib.Loss(z_loss_weight=-1.0)


def test_gradients_of_bfloat16_parameters_are_summed_and_measured_in_float32():
    """The norm is NumPy's of what each microbatch alone gives, with weights of its share."""
    model = tiny.model(param_dtype="bfloat16")
    of = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    chain, train_step = make(microbatches=4, model=model)
    _, metrics = train_step(begin(chain, of), batch())
    total, tokens = batch().weights.sum(), (batch().segments > 0).sum()
    loss = functools.partial(step_lib.loss_and_sums, model, step_lib.Loss(z_loss_weight=Z), 3)
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch()) for i in range(B)]
    grads = [
        jax.jit(jax.grad(lambda p, rows: loss(p, rows, total, tokens)[0]))(of, part)
        for part in parts
    ]
    assert {x.dtype.name for x in jax.tree.leaves(grads)} == {"bfloat16"}
    summed = [sum(np.asarray(x, np.float64) for x in leaf)
              for leaf in zip(*map(jax.tree.leaves, grads), strict=True)]  # fmt: skip
    norm = np.sqrt(sum((leaf**2).sum() for leaf in summed))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
