# SPDX-License-Identifier: Apache-2.0
"""Token folders against the tokenizer itself, and what a second run does."""

import contextlib
import dataclasses
import json
import pathlib

import fake_bucket
import pytest
import tokenizers
from etils.epath import gpath
from tokenizers import models, pre_tokenizers, trainers

from midjax import demo_data, files
from midjax.batches import shards, tokenize, vocabulary, workers
from midjax.corpora import formats, text

TOKENIZER = str(demo_data.path("tokenizer"))
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
TEXTS = ["Hello, world.", "def f(x):\n    return x + 1\n", f"a marker {EOS} in the text", "ünïcödé"]
FAST = vocabulary.FastTokenizer(path=TOKENIZER, bos_token=BOS, eos_token=EOS)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"d{i}", "text": t} for i, t in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    source = text.JsonLines(
        path=str(path), format=formats.Text(field="text"), id_field="id", max_bad_records=1
    )
    return tokenize.Tokenize(
        sources={"s": source},
        tokenizer=FAST,
        output=str(tmp_path / "out"),
        shard_tokens=20,
        processes=1,
    )


@pytest.fixture
def several(tmp_path, config):
    """Five files of questions with answers, one bad line each in the first two."""
    for number in range(5):
        rows = [
            {"q": f"What is {i} + {number}?", "a": f"{i + number}, or {EOS}."}
            for i in range(1 + 13 * number)
        ]
        bad = "{\n" if number < 2 else ""
        place = tmp_path / f"qa-{number}.jsonl"
        place.write_text("".join(json.dumps(row) + "\n" for row in rows) + bad)
    answers = formats.QuestionAnswer(
        question_field="q",
        answer_field="a",
        template="Q: {{ question }}\nA: {{ answer }}",
        loss="answer",
    )
    source = text.JsonLines(
        path=str(tmp_path / "qa-*.jsonl"), format=answers, id_field=None, max_bad_records=2
    )
    sources = {**config.sources, "qa": source}
    return dataclasses.replace(config, sources=sources, shard_tokens=300)


def content(folder):
    root = pathlib.Path(folder)
    return {
        str(place.relative_to(root)): place.read_bytes()
        for place in sorted(root.rglob("*"))
        if place.is_file()
    }


def test_documents_come_back_token_for_token(config):
    manifest = tokenize.run(config)["s"]
    source = shards.TokenSource(f"{config.output}/s")
    plain = tokenizers.Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json")
    bos, eos = plain.token_to_id(BOS), plain.token_to_id(EOS)
    assert len(source) == len(TEXTS) and source.ids() == ["d0", "d1", "d2", "d3"]
    for i, expected in enumerate(TEXTS):
        tokens = source[i]
        assert tokens[0] == bos and tokens[-1] == eos
        assert eos not in tokens[1:-1]  # a special token spelled in a text is text
        assert plain.decode(tokens[1:-1].tolist()) == expected
        assert source.lengths[i] == len(tokens)
        assert source.text_bytes[i] == len(expected.encode())
    assert manifest["tokens"] == source.lengths.sum() and manifest["dropped"] == {"not JSON": 1}
    assert len(manifest["shards"]) > 1  # 20 tokens a shard
    assert manifest["vocab_size"] == plain.get_vocab_size() and manifest["dtype"] == "<u2"
    assert manifest["lint"]["spelled"] == {EOS: 1}


def test_repeated_ids_are_told(config, tmp_path, capsys):
    rows = [{"id": i, "text": "x"} for i in (1, 2, 1, "1", 3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tokenize.run(config)["s"]["repeated_ids"] == 2
    assert "warning: 2 documents have the id of another one" in capsys.readouterr().out


def test_any_number_of_processes_writes_the_same_bytes(several, tmp_path, capsys):
    one = dataclasses.replace(several, output=str(tmp_path / "1"))
    tokenize.run(one)
    written = content(one.output)
    for count in (2, 3):
        other = dataclasses.replace(several, output=str(tmp_path / str(count)), processes=count)
        manifests = tokenize.run(other)
        assert content(other.output) == written
    manifest = manifests["qa"]
    assert manifest["documents"] == sum(1 + 13 * n for n in range(5))
    assert manifest["dropped"] == {"not JSON": 2}
    assert len(manifest["inputs"]) == 5 and len(manifest["shards"]) > 6
    assert 0 < manifest["loss_tokens"] < manifest["tokens"]
    assert "warning: texts spell special tokens '<|end_of_text|>' 135" in capsys.readouterr().out


def test_masks_come_from_the_format(several):
    tokenize.run(several)
    source = shards.TokenSource(f"{several.output}/qa")
    plain = tokenizers.Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json")
    assert source.has_loss
    for i in (0, 1, 70):
        tokens, loss = source[i], source.loss(i).astype(bool)
        assert loss[-1] and plain.id_to_token(tokens[-1]) == EOS
        answer = plain.decode(tokens[loss][:-1].tolist())
        question = plain.decode(tokens[~loss].tolist())
        assert answer.strip().endswith(f"or {EOS}.") and question.strip().startswith("Q: What is")


def test_unchanged_sources_are_kept_and_changed_ones_are_not(config, capsys):
    tokenize.run(config)
    before = content(config.output)
    tokenize.run(dataclasses.replace(config, shard_tokens=10**6))  # nothing to do: nothing changes
    assert "up to date, kept" in capsys.readouterr().out and content(config.output) == before
    path = files.path(config.sources["s"].path)
    path.write_text('{"id": "new", "text": "other"}\n')
    tokenize.run(config)
    assert shards.TokenSource(f"{config.output}/s").ids() == ["new"]
    assert "made anew, as this changed: input" in capsys.readouterr().out
    looser = dataclasses.replace(config.sources["s"], max_bad_records=7)
    tokenize.run(dataclasses.replace(config, sources={"s": looser}))
    assert "up to date, kept" in capsys.readouterr().out  # a budget changes no token
    other = dataclasses.replace(config.sources["s"], id_field=None)
    tokenize.run(dataclasses.replace(config, sources={"s": other}))
    assert "made anew, as this changed: reader" in capsys.readouterr().out
    assert shards.TokenSource(f"{config.output}/s").ids() == ["in.jsonl:1"]


def test_what_a_kill_left_after_the_manifest_is_removed(config):
    tokenize.run(config)
    before = content(config.output)
    for name in ("part-00000-00000.json", "unit-00000.json", ".tokens-00000-00000.bin.f.tmp"):
        (pathlib.Path(config.output) / "s" / name).write_text("{}")
    tokenize.run(config)
    assert content(config.output) == before


def test_a_damaged_shard_is_found(config):
    manifest = tokenize.run(config)["s"]
    shard = files.path(config.output) / "s" / next(iter(manifest["shards"]))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="is damaged: sha256"):
        tokenize.run(config)


def test_errors_name_what_is_wrong(config, tmp_path):
    with pytest.raises(ValueError, match=r"has no bos token '<s>'; it has .*begin_of_text"):
        tokenize.run(
            dataclasses.replace(config, tokenizer=dataclasses.replace(FAST, bos_token="<s>"))
        )
    with pytest.raises(FileNotFoundError, match="No tokenizer.json"):
        tokenize.run(
            dataclasses.replace(config, tokenizer=dataclasses.replace(FAST, path=str(tmp_path)))
        )
    with pytest.raises(ValueError, match="tokenizer is None, and source 's' needs one"):
        tokenize.run(dataclasses.replace(config, tokenizer=None))
    files.path(config.sources["s"].path).write_text("{\n")
    with pytest.raises(ValueError, match="gave no document; dropped: {'not JSON': 1}"):
        tokenize.run(config)
    with pytest.raises(FileNotFoundError, match="not a finished token folder"):
        shards.TokenSource(f"{config.output}/s")
    with pytest.raises(ValueError, match="processes must be 1 or more, got 0"):
        dataclasses.replace(config, processes=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_budget_of_bad_records_is_of_the_whole_source(several, processes):
    """No unit has more than one bad line; together they have two."""
    strict = dataclasses.replace(several.sources["qa"], max_bad_records=1)
    config = dataclasses.replace(several, sources={"qa": strict}, processes=processes)
    with pytest.raises(ValueError, match="'qa': 2 bad records, and max_bad_records allows 1"):
        tokenize.run(config)
    manifest = tokenize.run(dataclasses.replace(config, sources={"qa": several.sources["qa"]}))
    assert manifest["qa"]["dropped"] == {"not JSON": 2}


def other_tokenizer(folder):
    """A WordLevel tokenizer without BOS or EOS."""
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    made.save(str(folder / "tokenizer.json"))
    return made, vocabulary.FastTokenizer(path=str(folder), bos_token=None, eos_token=None)


def test_any_fast_tokenizer_will_do(tmp_path, config):
    made, other = other_tokenizer(tmp_path)
    tokenize.run(dataclasses.replace(config, tokenizer=other))
    source = shards.TokenSource(f"{config.output}/s")
    assert [made.id_to_token(t) for t in source[0]] == ["Hello", ",", "world", "."]


def test_a_changed_tokenizer_makes_its_sources_anew_and_does_not_mix(tmp_path, config, capsys):
    _, other = other_tokenizer(tmp_path)
    tokenize.run(config)
    changed = dataclasses.replace(config, tokenizer=other)
    apart = dataclasses.replace(changed, sources={"t": config.sources["s"]})
    with pytest.raises(ValueError, match=r"out/s holds tokens of another tokenizer \(sha256"):
        tokenize.run(apart)
    assert not (files.path(config.output) / "t").exists()
    manifest = tokenize.run(changed)["s"]
    said = capsys.readouterr().out
    assert "tokenize s: made anew, as this changed: tokenizer_hash, vocab_size" in said
    assert manifest["vocab_size"] < 100
    tokenize.run(apart)  # now they are of one tokenizer


def test_a_failing_run_loses_nothing_that_was_finished(config, tmp_path):
    tokenize.run(config)
    before = content(pathlib.Path(config.output) / "s")
    path = pathlib.Path(config.sources["s"].path)
    good = path.read_text()
    path.write_text(good + "{\n")  # one bad line more than the budget
    with pytest.raises(ValueError, match="2 bad records"):
        tokenize.run(config)
    after = content(pathlib.Path(config.output) / "s")
    assert {name: after[name] for name in before} == before
    assert shards.TokenSource(f"{config.output}/s").ids() == ["d0", "d1", "d2", "d3"]
    path.write_text(good)
    tokenize.run(config)
    assert content(pathlib.Path(config.output) / "s") == before


def test_killed_while_new_tokens_take_the_place_of_old_ones(config, tmp_path, monkeypatch):
    """Killed before every step of it: a rerun leaves what a fresh run would have made."""
    path = files.path(config.sources["s"].path)
    short, long = (json.dumps({"id": "x", "text": "a " * n}) + "\n" for n in (9, 99))
    path.write_text(short)
    fresh = dataclasses.replace(config, output=str(tmp_path / "fresh"))
    tokenize.run(fresh)
    expected, real, steps = content(fresh.output), workers.parts.move, range(99)
    for step in steps:
        path.write_text(long * 2)  # more shards than there will be
        here = dataclasses.replace(config, output=str(tmp_path / str(step)))
        tokenize.run(here)
        path.write_text(short)

        def move(source, folder, step=step):
            left = iter(range(step))
            with monkeypatch.context() as patch:
                for name in ("unlink", "replace", "rmtree"):
                    patch.setattr(gpath.PosixGPath, name, dying(name, left))
                real(source, folder)

        with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
            patch.setattr(workers.parts, "move", move)
            tokenize.run(here)
            assert content(here.output) == expected
            break
        tokenize.run(here)
        assert content(here.output) == expected, step
    assert 7 < step < len(steps) - 1


def dying(name, left):
    """A method of paths that fails once none are left."""
    real = getattr(gpath.PosixGPath, name)

    def method(self, *args, **kwargs):
        if next(left, None) is None:
            raise RuntimeError("killed")
        return real(self, *args, **kwargs)

    return method


def test_a_source_is_not_written_where_it_is_read(config):
    path = pathlib.Path(config.sources["s"].path)
    folder = path.parent / "in"
    folder.mkdir()
    path.rename(folder / "part-00000.jsonl")
    source = dataclasses.replace(config.sources["s"], path=str(folder / "part-*.jsonl"))
    here = dataclasses.replace(config, sources={"in": source}, output=str(path.parent))
    with pytest.raises(ValueError, match="'in' reads .*part-00000.jsonl, and its tokens would be"):
        tokenize.run(here)
    assert sorted(p.name for p in folder.iterdir()) == ["part-00000.jsonl"]


def stopped_after(config, parts, monkeypatch):
    """Runs until so many parts are written, then dies as of a bug."""
    real, left = workers.parts.PartWriter._close_part, [parts]

    def close(self):
        if not left[0]:
            raise RuntimeError("stopped")
        left[0] -= 1
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(workers.parts.PartWriter, "_close_part", close)
        with pytest.raises(RuntimeError, match="stopped"):
            tokenize.run(config)


def test_parts_of_an_unfinished_run_are_kept_only_under_the_same_settings(
    several, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(several, sources={"qa": several.sources["qa"]})
    whole = dataclasses.replace(config, output=str(tmp_path / "whole"))
    tokenize.run(whole)
    stopped_after(config, 4, monkeypatch)
    tokenize.run(config)
    assert "documents, " in (said := capsys.readouterr().out)
    assert "of them from an earlier run" in said and "begun anew" not in said
    assert content(config.output) == content(whole.output)

    _, other = other_tokenizer(tmp_path)
    fresh = dataclasses.replace(config, output=str(tmp_path / "fresh"))
    stopped_after(fresh, 4, monkeypatch)
    tokenize.run(dataclasses.replace(fresh, tokenizer=other))
    said = capsys.readouterr().out
    assert "begun anew: an unfinished run" in said and "of them from" not in said
    expected = dataclasses.replace(config, output=str(tmp_path / "expected"), tokenizer=other)
    tokenize.run(expected)
    assert content(fresh.output) == content(expected.output)


def test_a_unit_whose_input_changed_meanwhile_is_made_anew(several, tmp_path, monkeypatch):
    config = dataclasses.replace(several, sources={"qa": several.sources["qa"]})
    stopped_after(config, 4, monkeypatch)
    with (tmp_path / "qa-0.jsonl").open("a") as file:
        file.write('{"q": "one", "a": "more"}\n')
    tokenize.run(config)
    whole = dataclasses.replace(config, output=str(tmp_path / "whole"))
    tokenize.run(whole)
    assert content(config.output) == content(whole.output)


def test_two_runs_do_not_write_into_one_folder(config, monkeypatch):
    monkeypatch.setattr(workers, "_LOCK_POLLS", 1)
    monkeypatch.setattr(workers, "_POLL_SECONDS", 0)
    with (
        tokenize._only_writer(config.output),
        pytest.raises(ValueError, match="Another process is writing to"),
    ):
        tokenize.run(config)
    assert tokenize.run(config)["s"]["documents"] == 4


def test_a_bucket_holds_what_a_local_folder_would(several, monkeypatch):
    tokenize.run(several)
    bucket = fake_bucket.install(monkeypatch)
    there = dataclasses.replace(several, output="gs://b/dir/out")
    stopped_after(there, 4, monkeypatch)
    tokenize.run(there)
    stored = {name: file.getvalue() for name, file in bucket.store.items()}
    prefix = "/b/dir/out/"
    found = {name.removeprefix(prefix): data for name, data in stored.items()}
    local = {k: v for k, v in content(several.output).items() if not k.startswith(".")}
    assert found == local
    source, same = (
        shards.TokenSource("gs://b/dir/out/qa"),
        shards.TokenSource(f"{several.output}/qa"),
    )
    for i in (0, 70, len(same) - 1):
        assert source.read(i, 2, 3).tolist() == same.read(i, 2, 3).tolist()
        assert source.loss(i).tolist() == same.loss(i).tolist()
    assert source.ids() == same.ids()
    tokenize.run(there)  # kept
    assert {name: file.getvalue() for name, file in bucket.store.items()} == stored
    first = pathlib.Path(several.sources["qa"].path).with_name("qa-0.jsonl")
    first.write_text('{"q": "another", "a": "one"}\n')
    for made in (several, there):
        tokenize.run(made)  # anew, and in the place of the old
    found = {k.removeprefix(prefix): file.getvalue() for k, file in bucket.store.items()}
    assert found != local
    assert found == {k: v for k, v in content(several.output).items() if not k.startswith(".")}
