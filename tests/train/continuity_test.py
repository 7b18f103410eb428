# SPDX-License-Identifier: Apache-2.0
"""What must agree with the place that a run starts from, and what is said where it does not."""

import dataclasses
import json

import imported
import jax
import pytest
import tiny_run as tiny

from midjax import checkpoint, lineage, verbs
from midjax.average import methods
from midjax.average import recipe as averaging
from midjax.importing import recipe as importing
from midjax.model import architecture, hf, rope
from midjax.train import continuity, loop, prepare, start


def keeping(source, *parts, kind="anneal", **kwargs):
    return tiny.begin(kind, run=str(source / "run"), keep=parts, **kwargs)


def test_a_jump_of_the_rate_must_be_asked_for(source, capsys):
    up = tiny.wsd(peak_lr=2e-2, warmup_steps=0, decay_steps=8)
    with pytest.raises(start.StartError, match=r"is 0.01 and the first of this schedule is 0.02"):
        prepare.prepare(tiny.anneal(source, "jump", schedule=up))
    warm = tiny.wsd(peak_lr="checkpoint", warmup_steps=2, decay_steps=0)
    with pytest.raises(start.StartError, match=r"the first of this schedule is 0\."):
        prepare.prepare(tiny.anneal(source, "jump", schedule=warm))
    asked = tiny.begin("anneal", run=str(source / "run"), allow_lr_jump="a better rate")
    config = tiny.anneal(source, "jump", schedule=up, start=asked)
    jump = prepare.prepare(config).lr_jump
    told = {"from": pytest.approx(0.01), "to": 0.02, "reason": "a better rate", "step": 0}
    assert jump == told
    assert "learning rate jump, as asked for (a better rate)" in capsys.readouterr().out


def test_data_position_kept_goes_on_in_every_source(source):
    keep = keeping(source, "data", "rng")
    weights = (0, {"prose": 0.2, "code": 0.5, "maths": 0.3})
    mix = tiny.mixture(weights, seed=99)
    config = tiny.anneal(source, "goes-on", start=keep, data=tiny.data(source / "tokens", mix))
    prepared = prepare.prepare(config)
    drawn = checkpoint.read_facts(str(source / "run"), 8)["data"]["drawn_rows"]
    assert sum(drawn.values()) == 8 * tiny.B
    order = prepared.loader.order
    firsts = {}
    for i in range(order.total_rows):
        source_index, row = order[i]
        firsts.setdefault(order.names[source_index], row)
    assert firsts == drawn
    assert prepared.config.data.mixture.seed == 1  # rng kept: the source's own permutations


def test_data_position_cannot_be_kept_when_rows_mean_other_text(source):
    data = tiny.data(source / "tokens", row_tokens=tiny.T // 2, batch_rows=2 * tiny.B)
    with pytest.raises(start.StartError, match="row_tokens was 16 and is 8"):
        prepare.prepare(tiny.anneal(source, "x", start=keeping(source, "data"), data=data))
    data = tiny.data(source / "tokens", tiny.mixture(seed=2))
    with pytest.raises(start.StartError, match=r"seed was 1 and is 2 \(put 'rng' in Start.keep"):
        prepare.prepare(tiny.anneal(source, "x", start=keeping(source, "data"), data=data))


def test_a_source_that_a_run_leaves_out_keeps_its_place(source):
    """pretrain (three sources) -> anneal without maths -> anneal with maths again."""
    without = tiny.data(source / "tokens", tiny.mixture((0, {"prose": 0.5, "code": 0.5})))
    middle = tiny.anneal(
        source, "without-maths", start=keeping(source, "data", "rng"), data=without
    )
    loop.run(middle)
    drawn = checkpoint.read_facts(str(source / "run"), 8)["data"]["drawn_rows"]
    again = tiny.begin("weights", run=middle.run_dir, keep=("data", "rng"))
    last = prepare.prepare(tiny.train(source, "with-maths", start=again))
    assert last.position.base_rows["maths"] == drawn["maths"]
    assert last.position.base_rows["prose"] > drawn["prose"]
    (_, own) = lineage.of(middle.run_dir, 8)
    assert own["tokens by source"]["maths"] == 0
    assert sum(own["tokens by source"].values()) == 8 * tiny.B * tiny.T


def test_a_resume_in_a_new_folder_counts_its_own_rows_and_says_its_stage(source):
    config = tiny.train(source, "on", steps=12, start=keeping(source, kind="resume"))
    loop.run(config)
    first, own = lineage.of(config.run_dir, 12)
    assert sum(first["tokens by source"].values()) == 8 * tiny.B * tiny.T
    assert sum(own["tokens by source"].values()) == 4 * tiny.B * tiny.T
    events = [json.loads(line) for line in (source / "on" / "events.jsonl").open()]
    assert [(e["name"], e["step"]) for e in events if e["event"] == "stage"] == [("s0", 9)]


def test_a_resume_in_a_new_folder_may_change_the_mixture(source):
    other = tiny.data(source / "tokens", tiny.mixture((0, {"prose": 0.5, "code": 0.5})))
    config = tiny.train(source, "on", steps=12, data=other, start=keeping(source, kind="resume"))
    prepared = prepare.prepare(config)
    drawn = checkpoint.read_facts(str(source / "run"), 8)["data"]["drawn_rows"]
    assert prepared.position.changed and prepared.position.past.first_row == 8 * tiny.B
    assert prepared.position.past.drawn == drawn and len(prepared.mixtures) == 2
    order = prepared.loader.order
    assert order.drawn(12 * tiny.B)["maths"] == drawn["maths"]
    assert sum(order.drawn(12 * tiny.B).values()) == 12 * tiny.B


def test_a_branch_that_kept_the_seed_resumes(source):
    """Killed after its first checkpoint, it goes on with the seed that it took over."""
    data = tiny.data(source / "tokens", tiny.mixture(seed=99))
    config = tiny.anneal(
        source, "kept-seed", start=keeping(source, "data", "rng"), data=data, steps=8
    )
    straight = loop.run(config)
    checkpoint.set_aside(config.run_dir, 8)
    resumed = loop.run(config)
    assert resumed["step"] == 8 and resumed["loss"] == straight["loss"]
    other = dataclasses.replace(config, data=tiny.data(source / "tokens", tiny.mixture(seed=98)))
    with pytest.raises(start.StartError, match="Mixture.seed was 99 and is 98"):
        prepare.prepare(other)


def test_changed_data_is_refused_at_resume(source, tmp_path):
    config = tiny.train(source, data=tiny.data(source / "tokens", tiny.mixture(seed=2)))
    with pytest.raises(start.StartError, match="mean other text: Mixture.seed was 1 and is 2"):
        prepare.prepare(config)
    tiny.write_tokens(tmp_path, documents=61)
    with pytest.raises(start.StartError, match="the tokens or packing of 'code' changed"):
        prepare.prepare(tiny.train(source, data=tiny.data(tmp_path)))


def test_another_shuffle_of_the_library_is_refused(source, monkeypatch):
    """The same recipe and files, and Grain gives other rows: as after a change of its shuffle."""
    prepare.prepare(tiny.train(source))
    monkeypatch.setattr("midjax.batches.loader._seed_of", lambda seed, name: seed + 1)
    with pytest.raises(start.StartError, match=r"orders rows differently.*midjax \d"):
        prepare.prepare(tiny.train(source))


def test_a_kept_step_leaves_something_to_train(source):
    longer = tiny.train(source, "longer", steps=12, start=keeping(source, kind="resume"))
    prepared = prepare.prepare(longer)
    assert prepared.first_step == 8 and prepared.first_row == 8 * tiny.B
    assert prepared.schedule_count == 8
    with pytest.raises(start.StartError, match="after 1024 tokens.* nothing is left to train"):
        prepare.prepare(dataclasses.replace(longer, train_tokens=8 * tiny.T * tiny.B))


def test_another_shape_or_vocabulary_is_refused_by_name(source):
    for change, message in (
        ({"ffn_dim": 48}, r"layers/w_down: checkpoint float32\[2, 32, 16\], recipe float32\["),
        ({"vocab_size": 80}, r"embed: checkpoint float32\[64, 16\], recipe float32\[80, 16\]"),
        ({"tied_head": True}, r"head: checkpoint float32\[16, 64\], recipe absent"),
    ):
        with pytest.raises(start.StartError, match=message):
            prepare.prepare(tiny.anneal(source, "x", model=tiny.model(**change)))


def rope_of(theta=10000.0, **scaling):
    return rope.Rope(theta=theta, scaling=rope.RopeScaling(**({"kind": "none"} | scaling)))


def test_what_no_shape_shows_is_compared_too(source):
    with pytest.raises(start.StartError, match="norm_eps: there 1e-05, recipe 1e-06"):
        prepare.prepare(tiny.anneal(source, "x", model=tiny.model(norm_eps=1e-6)))
    other = tiny.model(rope=rope_of(theta=5e5))
    with pytest.raises(start.StartError, match=r"rotary embedding differs .*is not longer"):
        prepare.prepare(tiny.anneal(source, "x", model=other))
    longer = dataclasses.replace(other, context_tokens=4 * tiny.T)
    prepare.prepare(tiny.anneal(source, "x", model=longer))  # an extension


def test_another_tokenizer_is_refused(source, tmp_path):
    tiny.write_tokens(tmp_path, tokenizer="another")
    with pytest.raises(start.StartError, match="was trained on another tokenizer"):
        prepare.prepare(tiny.anneal(source, "x", data=tiny.data(tmp_path)))


def test_a_hugging_face_folder_is_checked_before_it_is_read(source, tmp_path, monkeypatch):
    params = jax.device_get(loop.begin(tiny.train(source)).state.params)
    folder = tmp_path / "hf"

    def config(**kwargs):
        first = tiny.begin("weights", huggingface=str(folder))
        return tiny.train(source, "from-hf", start=first, **kwargs)

    with pytest.raises(FileNotFoundError, match=r"hf is not a folder"):
        prepare.prepare(config())
    hf.save(str(folder), tiny.model(), params, "float32")
    monkeypatch.setattr(hf, "load", None)
    prepare.prepare(config())
    with pytest.raises(start.StartError, match="does not fit .*ffn_dim: there 32, recipe 48"):
        prepare.prepare(config(model=tiny.model(ffn_dim=48)))
    with pytest.raises(start.StartError, match="rotary embedding differs"):
        prepare.prepare(config(model=tiny.model(rope=rope_of(theta=5e5))))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(start.StartError, match="was trained on another tokenizer"):
        prepare.prepare(config())


def test_json_and_tuples_are_the_same_model():
    model = tiny.model()
    theirs = json.loads(json.dumps(dataclasses.asdict(model)))
    continuity.model("x", theirs, model)
    with pytest.raises(start.StartError, match="layers: there 3, recipe 2"):
        continuity.model("x", theirs | {"layers": 3}, model)


# ---- imported checkpoints ----


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """Token folders and two imported runs: MaxText's with moments, llama2.c's without."""
    folder = tmp_path_factory.mktemp("foreign")
    tiny.write_tokens(folder / "tokens")
    for name, source, model in (
        ("maxtext", imported.maxtext_source(), imported.model()),
        ("stories", imported.stories_source(), None),
    ):
        importing.run(imported.importing(folder / name, source, model))
    return folder


def from_maxtext(foreign, kind="anneal", **kwargs):
    """A recipe whose start keeps what `kind` says, and whose rate goes on at MaxText's 0.001."""
    begin = {"run": str(foreign / "maxtext")} | kwargs.pop("begin", {})
    given = {
        "model": imported.model(),
        "optimizer": tiny.adamw(decay_rules={".*": 1.0}),
        "start": tiny.begin(kind, **begin),
        "schedule": tiny.wsd(peak_lr="checkpoint", warmup_steps=0, decay_steps=8),
    }
    return tiny.train(foreign, "from-import", **(given | kwargs))


def test_an_anneal_begins_from_an_imported_checkpoint(foreign, capsys):
    prepared = prepare.prepare(from_maxtext(foreign))
    assert prepared.lr(0) == pytest.approx(1e-3) and prepared.first_step == 0
    assert prepared.origin.parts == {"params", "moments", "adam_count"}
    assert "came without a tokenizer" in capsys.readouterr().out


def test_the_rate_of_an_imported_checkpoint_may_not_jump(foreign):
    with pytest.raises(start.StartError, match=r"step 17, is 0.001 and the first of this schedule"):
        prepare.prepare(from_maxtext(foreign, schedule=tiny.wsd(peak_lr=3e-3, warmup_steps=0)))


@pytest.mark.parametrize("begin", [{"keep": ("data",)}, {"keep": ("rng",)}])
def test_an_imported_checkpoint_has_no_data_position(foreign, begin):
    with pytest.raises(start.StartError, match="holds no position in any data. Put 'data' and"):
        prepare.prepare(from_maxtext(foreign, begin=begin))
    with pytest.raises(start.StartError, match="holds no position in any data"):
        prepare.prepare(from_maxtext(foreign, "resume"))


def test_the_step_of_an_imported_checkpoint_can_be_kept(foreign, capsys):
    config = from_maxtext(
        foreign, "resume", begin={"reset": ("data", "rng")}, steps=20,
        schedule=tiny.wsd(peak_lr=1e-3, warmup_steps=0),
    )  # fmt: skip
    prepared = prepare.prepare(config)
    assert (prepared.first_step, prepared.schedule_count, prepared.first_row) == (17, 17, 0)
    assert "its step is kept, whatever batches it counted" in capsys.readouterr().out
    assert prepared.loader.order.total_rows == 3 * tiny.B


def test_without_moments_weights_are_all_that_can_be_kept(foreign):
    model = imported.stories_source().open(None).model
    begin = {"run": str(foreign / "stories")}
    config = from_maxtext(foreign, begin=begin, model=model)
    with pytest.raises(start.StartError, match="holds no moments of Adam, as its source had none"):
        prepare.prepare(config)
    fresh = from_maxtext(foreign, "weights", begin=begin, model=model, schedule=tiny.wsd())
    with pytest.raises(start.StartError, match="was trained on another tokenizer"):
        prepare.prepare(fresh)  # its own tokenizer came along, and this data has another


def test_a_run_cannot_go_on_in_the_folder_of_an_import(foreign):
    with pytest.raises(start.StartError, match="Give the run a folder of its own"):
        prepare.prepare(from_maxtext(foreign, run_dir=str(foreign / "maxtext")))


def test_a_checkpoint_goes_on_in_8_bits_and_back():
    plain = tiny.model()
    quantized = tiny.model(quantization=architecture.Quantization(dtype="int8"))
    for there, recipe in ((plain, quantized), (quantized, plain)):
        continuity.model("there", dataclasses.asdict(there), recipe)
    older = dataclasses.asdict(plain)
    del older["quantization"]  # written before there was the field
    continuity.model("there", older, quantized)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("schedule",), "holds no position on any schedule"),
        (("moments", "adam_count"), "holds no moments of Adam"),
    ],
)
def test_an_average_has_neither_a_place_on_a_schedule_nor_moments(source, parts, message):
    method = methods.LastN(run=str(source / "run"), newest=2, steps=None, weights=None)
    output = str(source / "average")
    made = averaging.Average(output=output, method=method, mesh=tiny.train(source).mesh)
    averaging.run(made, find=verbs.checkpoint_of, scorer=None)
    kept = tiny.begin("weights", run=output, keep=parts)
    with pytest.raises(start.StartError, match=f"was imported and {message}"):
        prepare.prepare(tiny.train(source, "kept", start=kept))
    prepare.prepare(tiny.train(source, "on", start=tiny.begin("weights", run=output)))
