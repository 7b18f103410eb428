# SPDX-License-Identifier: Apache-2.0
"""The loader against a straight reading of the mixture, on other numbers of readers and epochs."""

import collections
import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from midjax.batches import batch as batch_lib
from midjax.batches import loader as loader_lib
from midjax.batches import shards
from midjax.mixture import plan as plan_lib
from midjax.mixture import stages as stages_lib

T, B, ROWS = 8, 4, 720


def write(folder, documents, first_token, *, vocab_size=60_000, tokenizer="t"):
    rng = np.random.default_rng(first_token)
    made, token = [], first_token
    for i in range(documents):
        length = int(rng.integers(2, 30))
        made.append((f"{i}", length, np.arange(token, token + length)))
        token += length
    facts = {"vocab_size": vocab_size, "tokenizer_hash": tokenizer}
    shards.write(str(folder), made, facts=facts, shard_tokens=1000)


@pytest.fixture
def data(tmp_path):
    for k, (name, documents) in enumerate((("code", 12), ("maths", 20), ("web", 40))):
        write(tmp_path / name, documents, 10_000 * (k + 1))
    stages = (
        stages_lib.Stage(name="a", start_tokens=0, weights={"web": 0.6, "code": 0.3, "maths": 0.1}),
        stages_lib.Stage(
            name="b", start_tokens=T * 50, weights={"web": 0.2, "code": 0.4, "maths": 0.4}
        ),
    )
    return loader_lib.Data(
        sources={
            name: loader_lib.Source(tokens=str(tmp_path / name), packing=packing)
            for name, packing in (("web", "concat"), ("code", "best_fit"), ("maths", "concat"))
        },
        mixture=stages_lib.Mixture(
            stages=stages, max_epochs=dict.fromkeys(("web", "code", "maths"), 30.0), seed=5,
            block_rows=10,
        ),
        row_tokens=T,
        batch_rows=B,
    )  # fmt: skip


def loader(data, total_rows=ROWS, **kwargs):
    return loader_lib.Loader(data, loader_lib.Opened(data), total_rows=total_rows, **kwargs)


def row_ids(loader, **kwargs):
    return [ids for _, ids in loader.batches(**{"next_row": 0, "prefetch": 0} | kwargs)]


def test_each_epoch_reads_every_row_once_in_a_fresh_order(data):
    made = loader(data)
    drawn = collections.defaultdict(list)
    for source, row in np.concatenate(row_ids(made)).tolist():
        drawn[source].append(row)
    assert {k: len(v) for k, v in drawn.items()} == dict(
        enumerate(made.order.counts(ROWS).tolist())
    )
    for source, rows in drawn.items():
        size = int(made.order.source_rows[source])
        epochs = [rows[i : i + size] for i in range(0, len(rows), size)]
        assert len(epochs) >= 2
        whole = [epoch for epoch in epochs if len(epoch) == size]
        assert all(sorted(epoch) == list(range(size)) for epoch in whole)
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        if len(whole) > 1:
            assert whole[0] != whole[1]


def test_rows_hold_the_text_of_their_source(data):
    for batch, ids in loader(data).batches(next_row=0, prefetch=0):
        real = batch.weights > 0
        assert (batch.source == ids[:, :1]).all()
        assert ((batch.tokens // 10_000 - 1 == batch.source) | ~real).all()
        assert (batch.targets[real] == batch.tokens[real] + 1).all()


@pytest.mark.parametrize("readers", [2, 4])
def test_readers_hold_equal_parts_of_the_same_batches(data, readers):
    """1, 2 and 4 data-parallel readers, over more than two epochs of every source."""
    made = loader(data)
    alone = list(made.batches(next_row=0, prefetch=0))
    parts = [
        list(made.batches(next_row=0, prefetch=0, parts=[r], of=readers)) for r in range(readers)
    ]
    assert made.order.epochs(ROWS).min() > 2
    assert len(alone) == len(parts[0]) == ROWS // B
    for (batch, ids), *shares in zip(alone, *parts, strict=True):
        assert np.concatenate([share[1] for share in shares]).tolist() == ids.tolist()
        for field in batch_lib.FIELDS:
            together = np.concatenate([getattr(share[0], field) for share in shares])
            assert (together == getattr(batch, field)).all()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1), (2, 1)])
def test_resuming_on_other_readers_loses_and_repeats_nothing(data, before, after):
    alone = [tuple(row) for row in np.concatenate(row_ids(loader(data))).tolist()]
    cut = 23  # steps before the resume
    head = [row_ids(loader(data), parts=[r], of=before)[:cut] for r in range(before)]
    tail = [row_ids(loader(data), parts=[r], of=after, next_row=cut * B) for r in range(after)]
    read = [tuple(row) for part in head + tail for step in part for row in step.tolist()]
    assert collections.Counter(read) == collections.Counter(alone)


def test_another_batch_size_at_resume_continues_the_same_rows(data):
    alone = np.concatenate(row_ids(loader(data))).tolist()
    wider = dataclasses.replace(data, batch_rows=10)
    assert np.concatenate(row_ids(loader(wider), next_row=20)).tolist()[:200] == alone[20:220]


SIZES = {0: 4, 6: 8, 7: 2, 30: 12}


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("cut", [0, 5, 6, 31])
def test_batches_of_other_sizes_at_other_steps_continue_the_same_rows(data, readers, cut):
    """A ramp as a table, resumed at any step, on any number of readers, is the same rows."""
    made, alone = loader(data), np.concatenate(row_ids(loader(data))).tolist()
    sizes = [SIZES[max(step for step in SIZES if step <= i)] for i in range(200)]
    begins = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    where = {"next_row": begins[cut], "first_step": cut, "of": readers}
    parts = [row_ids(made, batch_rows=SIZES, parts=[r], **where) for r in range(readers)]
    for i, step in enumerate(zip(*parts, strict=True)):
        assert np.concatenate(step).tolist() == alone[begins[cut + i] : begins[cut + i + 1]]
    last = cut + len(parts[0])
    assert begins[last] <= ROWS < begins[last + 1]
    by_function = row_ids(made, batch_rows=sizes.__getitem__, parts=[0], **where)
    assert all((a == b).all() for a, b in zip(parts[0], by_function, strict=True))


def test_places_are_those_of_the_batches(data):
    made = loader(data)
    for i, (batch, _) in zip(range(40), made.batches(next_row=0, prefetch=0), strict=False):
        places = made.places(i * B, (i + 1) * B)
        assert (places.segments == batch.segments).all() and places.segments.any()
        assert (places.positions == batch.positions).all()


def test_any_position_is_reached_at_once(data):
    """Row 10^12 of a run without end is made as the first one is: nothing before it is read."""
    endless = dataclasses.replace(
        data,
        mixture=dataclasses.replace(
            data.mixture, max_epochs=dict.fromkeys(data.mixture.names, 1e12)
        ),
    )
    made = loader(endless, total_rows=10**12 + 40)
    batches = list(made.batches(next_row=10**12, prefetch=0))
    assert len(batches) == 10
    for (batch, ids), begin in zip(batches, range(10**12, 10**12 + 40, B), strict=True):
        sources, numbers = made.order.rows(begin, begin + B)
        assert (ids[:, 0] == sources).all() and (batch.weights > 0).any(axis=1).all()
        names = [made.names[k] for k in sources]
        want = [made.row_id(n, k)[0] for n, k in zip(names, numbers.tolist(), strict=True)]
        assert ids[:, 1].tolist() == want


LENGTHS = {  # of the sources that random mixtures are made of
    "big": np.random.default_rng(1).integers(0, 30, 90),
    "cut": np.random.default_rng(2).integers(20, 70, 9),
    "few": np.array([5, 40]),
    "same": np.full(25, 6),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for k, (name, lengths) in enumerate(LENGTHS.items()):
        found[name] = str(tmp_path_factory.mktemp("random") / name)
        # Every token says which one it is: 5,000 for a source, its place in the source beyond.
        begins = 5000 * (k + 1) + np.cumsum(lengths) - lengths
        made = [(str(b), 1, np.arange(b, b + n)) for b, n in zip(begins, lengths, strict=True)]
        facts = {"vocab_size": 60_000, "tokenizer_hash": "t"}
        shards.write(found[name], made, facts=facts, shard_tokens=300)
    return found


@st.composite
def runs(draw):
    """(sources by packing, mixture, T, rows of the run)."""
    names = draw(st.lists(st.sampled_from(sorted(LENGTHS)), min_size=1, unique=True))
    packings = {n: draw(st.sampled_from(["concat", "first_fit", "best_fit"])) for n in names}
    row_tokens, rows = draw(st.integers(4, 24)), draw(st.integers(20, 150))
    starts = [0, *sorted(draw(st.sets(st.integers(1, rows - 1), max_size=2)))]
    weight = st.integers(1, 20)
    stages = [
        stages_lib.Stage(
            name=f"s{i}", start_tokens=start * row_tokens, weights={n: draw(weight) for n in names}
        )
        for i, start in enumerate(starts)
    ]
    caps = {n: draw(st.floats(0.5, 4)) for n in names}
    mixture = stages_lib.Mixture(
        stages=tuple(stages),
        max_epochs=caps | {names[0]: 1e6},  # one to which the others' shares can be shifted
        seed=draw(st.integers(0, 99)),
        block_rows=draw(st.integers(1, 30)),
        over_cap="shift",
    )
    return packings, mixture, row_tokens, rows


@hypothesis.given(
    run=runs(),
    segments=st.lists(  # (readers, rows of each, batches): a run that is resumed differently
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=4
    ),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_token_is_lost_or_repeated_over_readers_resumes_and_epochs(folders, run, segments):
    """Whatever the mixture: what was drawn of a source is its epochs, token for token, and as much
    of it in each stage as the printed plan says."""
    packings, mixture, row_tokens, rows = run
    sources = {
        n: loader_lib.Source(tokens=folders[n], packing=packing) for n, packing in packings.items()
    }
    data = loader_lib.Data(sources=sources, mixture=mixture, row_tokens=row_tokens, batch_rows=1)
    opened = loader_lib.Opened(data)
    pairs, read = collections.Counter(), []
    next_row = 0
    while next_row < rows:
        readers, each, batches = segments[0]
        segments = segments[1:] or [(1, 1, rows)]
        made = loader_lib.Loader(data, opened, total_rows=rows)  # as after a restart
        parts = [
            made.batches(next_row=next_row, parts=[r], of=readers, batch_rows={0: readers * each})
            for r in range(readers)
        ]
        for _, *shares in zip(range(batches), *parts, strict=False):
            for batch, ids in shares:
                read += ids[:, 0].tolist()
                real = batch.weights > 0
                pairs.update(zip(batch.tokens[real], batch.targets[real], strict=True))
            next_row += readers * each
        for part in parts:
            part.close()
        if rows - next_row < readers * each:
            segments = [(1, 1, rows)]  # the rest, row by row
    assert len(read) == rows
    planned = {(r.stage, r.source): r.tokens for r in plan_lib.rows(made.order) if r.tokens}
    starts = [stage.start_tokens // row_tokens for stage in mixture.stages]
    in_stage = np.searchsorted(starts, np.arange(rows), side="right") - 1
    keys = [(mixture.stages[i].name, made.names[k]) for i, k in zip(in_stage, read, strict=True)]
    assert planned == {key: n * row_tokens for key, n in collections.Counter(keys).items()}
    drawn = made.order.counts(rows)
    for k, name in enumerate(made.names):
        at = 5000 * (list(LENGTHS).index(name) + 1)
        found = collections.Counter(
            {token: n for (token, target), n in pairs.items() if at <= token < at + 5000}
        )
        per_epoch = len(opened.plans[name])
        assert drawn[k] <= mixture.max_epochs[name] * per_epoch + 1e-9
        whole, rest = divmod(int(drawn[k]), per_epoch)
        begins = at + np.cumsum(LENGTHS[name]) - LENGTHS[name]
        inputs = {
            int(b) + i for b, n in zip(begins, LENGTHS[name], strict=True) for i in range(n - 1)
        }
        assert set(found) <= inputs and all(target == token + 1 for token, target in pairs)
        # Each epoch that is over has every pair once, the one that has begun at most once.
        assert all(whole <= found[token] <= whole + 1 for token in inputs)
        if not rest:
            assert set(found.values()) <= {whole}
        assert sum(found.values()) <= whole * len(inputs) + rest * row_tokens


def test_prefetching_changes_nothing(data):
    one = row_ids(loader(data), next_row=12)
    other = row_ids(loader(data), next_row=12, prefetch=3)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_adding_a_source_keeps_the_permutations_of_the_others(data, tmp_path):
    write(tmp_path / "books", 30, 40_000)
    stage = stages_lib.Stage(
        name="a", start_tokens=0, weights={"web": 0.5, "code": 0.2, "maths": 0.1, "books": 0.2}
    )
    more = dataclasses.replace(
        data,
        sources=dict(data.sources)
        | {"books": loader_lib.Source(tokens=str(tmp_path / "books"), packing="concat")},
        mixture=stages_lib.Mixture(
            stages=(stage,), max_epochs=dict.fromkeys(stage.weights, 30.0), seed=5, block_rows=10
        ),
    )
    sequences = []
    for made in (loader(data), loader(more)):
        web = made.names.index("web")
        ids = np.concatenate(row_ids(made))
        sequences.append(ids[ids[:, 0] == web][:50, 1].tolist())
    assert sequences[0] == sequences[1]


def test_last_rows_are_those_before(data):
    made = loader(data)
    found = []
    for batch, ids in made.batches(next_row=0, prefetch=0):
        for row, (source, number) in enumerate(ids.tolist()):
            begins = np.concatenate([[0], np.cumsum(lengths_of(data, made.names[source]))])
            token = batch.tokens[row, 0] - 10_000 * (source + 1)
            document = int(np.searchsorted(begins, token, side="right")) - 1
            found.append([made.names[source], [number, document]])
    assert made.last_rows(20) == found[12:20] and made.last_rows(3) == found[:3]
    assert made.last_rows(0) == []
    # Documents are called by their numbers here.
    assert [[n["source"], [n["row"], int(n["document"])]] for n in made.named(3, 20)] == found[3:20]


def lengths_of(data, name):
    return shards.TokenSource(data.sources[name].tokens).lengths


def test_base_rows_go_on_where_each_source_was(data):
    whole = loader(data)
    cut = 100
    drawn = dict(zip(whole.names, whole.order.counts(cut).tolist(), strict=True))
    later = loader(data, total_rows=80, base_rows=drawn)
    for k, name in enumerate(whole.names):
        ids = np.concatenate(row_ids(whole))
        sequence = ids[ids[:, 0] == k][drawn[name] :, 1].tolist()
        went_on = np.concatenate(row_ids(later))
        went_on = went_on[went_on[:, 0] == k][:, 1].tolist()
        shared = min(len(sequence), len(went_on))
        assert shared > 3 and went_on[:shared] == sequence[:shared]


def halves(data, at):
    """The sources of `data`, but web as two: documents under `at` tokens, and the others."""
    web = data.sources["web"]
    stage = stages_lib.Stage(name="a", start_tokens=0, weights={"long": 0.34, "short": 0.66})
    return dataclasses.replace(
        data,
        sources={
            "long": dataclasses.replace(web, least_tokens=at),
            "short": dataclasses.replace(web, most_tokens=at - 1),
        },
        mixture=stages_lib.Mixture(
            stages=(stage,), max_epochs={"long": 30.0, "short": 30.0}, seed=5, block_rows=50
        ),
    )


def test_one_folder_as_long_and_short_documents(data):
    made = halves(data, 15)
    lengths = shards.TokenSource(data.sources["web"].tokens).lengths
    starts = 30_000 + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    opened = loader_lib.Opened(made)
    long, short = (opened.plans[name].dropped for name in ("long", "short"))
    assert long == {"fewer than 15 tokens": (lengths < 15).sum()}
    assert short == {"more than 14 tokens": (lengths >= 15).sum()}
    both = loader_lib.Loader(made, opened, total_rows=100)
    assert both.order.counts(100).tolist() == [34, 66]
    seen = set()
    for batch, ids in both.batches(next_row=0, prefetch=0):
        real = batch.weights > 0
        document = np.searchsorted(starts, batch.tokens, side="right") - 1
        assert ((lengths[document] >= 15) == (ids[:, :1] == 0))[real].all()
        seen |= set(np.unique(lengths[document[real]]))
    assert {lengths[lengths < 15].max(), lengths[lengths >= 15].min()} <= seen


def test_masks_are_part_of_the_contents_and_of_the_batches(data):
    web = data.sources["web"]
    joined = dataclasses.replace(
        data, sources=dict(data.sources) | {"web": dataclasses.replace(web, mask="none")}
    )
    opened = loader_lib.Opened(joined)
    plain = loader_lib.Opened(data).contents()
    assert opened.contents() == plain | {"web": f"{plain['web']}/mask none"}
    # Every token of a document takes a place, not only those with a target.
    lengths = lengths_of(data, "web")
    assert opened.plans["web"].tokens == lengths.sum()
    for batch, ids in loader(joined, total_rows=200).batches(next_row=0, prefetch=0):
        web_rows = ids[:, 0] == 2
        assert (batch.segments[web_rows] <= 1).all()
        real = batch.segments[web_rows] > 0
        assert (batch.positions[web_rows] == np.arange(T) * real).all()


@pytest.mark.parametrize("packing", ["first_fit", "best_fit_whole", "whole"])
def test_every_policy_loads(data, packing):
    source = dataclasses.replace(data.sources["web"], packing=packing)
    other = dataclasses.replace(data, sources=dict(data.sources) | {"web": source})
    made = loader(other, total_rows=100)
    lengths = lengths_of(data, "web")
    plan = loader_lib.Opened(other).plans["web"]
    if packing == "first_fit":
        assert plan.tokens == (lengths - 1).sum() and plan.truncated_tokens == 0
    else:
        assert plan.truncated_tokens == np.maximum(lengths - 1 - T, 0).sum() > 0
    assert len(row_ids(made)) == 25


def test_bounds_are_part_of_the_contents(data):
    plain = loader_lib.Opened(data).contents()
    hashed = plain["web"].partition("/")[0]
    assert plain["web"] == f"{hashed}/concat"
    assert loader_lib.Opened(halves(data, 15)).contents() == {
        "long": f"{hashed}/concat/15-", "short": f"{hashed}/concat/-14"
    }  # fmt: skip


@pytest.mark.parametrize("bounds", [(1, None), (None, 0), (9, 8), (-3, 5)])
def test_bounds_that_no_document_meets_are_refused(bounds):
    with pytest.raises(ValueError, match=r"2 or more .* got"):
        loader_lib.Source(
            tokens="t", packing="concat", least_tokens=bounds[0], most_tokens=bounds[1]
        )


def test_errors(data, tmp_path):
    with pytest.raises(ValueError, match="does not divide over 3 readers"):
        row_ids(loader(data), of=3)
    write(tmp_path / "code", 5, 10_000, tokenizer="another")
    with pytest.raises(ValueError, match=r"differ in tokenizer_hash.*one tokenizer"):
        loader_lib.Opened(data)
    with pytest.raises(ValueError, match=r"\['long'\] hold no row of 8 tokens"):
        loader(halves(data, 5000))
    with pytest.raises(ValueError, match=r"weights for \['maths'\]"):
        dataclasses.replace(data, sources={k: v for k, v in data.sources.items() if k != "maths"})
    with pytest.raises(ValueError, match="no stage gives a weight"):
        dataclasses.replace(data, sources=dict(data.sources) | {"x": data.sources["web"]})
