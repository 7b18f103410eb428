# SPDX-License-Identifier: Apache-2.0
import json

import corpora_reading as reader
import fake_bucket
import pytest

from midjax.corpora import arrow, chat, formats, reading

datasets = pytest.importorskip("datasets")


def rows(count, start=0):
    return [
        {"id": f"d{i}", "text": f"document {i} " + "ü" * (i * 13 % 31), "label": i % 2,
         "answers": {"text": [str(i)], "start": [i]}}
        for i in range(start, start + count)
    ]  # fmt: skip


def config(path, *, split=None, columns=None, id_field="id", form=reader.TEXT):
    return arrow.HuggingFaceDisk(
        path=str(path), split=split, format=form, id_field=id_field, max_bad_records=0,
        columns=columns,
    )  # fmt: skip


def test_documents_are_those_of_the_library(tmp_path):
    data = datasets.Dataset.from_list(rows(300)).cast_column(
        "label", datasets.ClassLabel(names=["no", "yes"])
    )
    data.save_to_disk(tmp_path / "d", num_shards=3)
    documents, tally = reader.read(config(tmp_path / "d"))
    loaded = datasets.load_from_disk(str(tmp_path / "d"))
    assert reader.pairs(documents) == [(row["id"], row["text"]) for row in loaded]
    assert documents[7].meta == {"label": 1, "answers": {"text": ["7"], "start": [7]}}
    files = list((tmp_path / "d").glob("*.arrow"))
    assert len(files) == 3 and tally.read_bytes == sum(p.stat().st_size for p in files)
    numbered, _ = reader.read(config(tmp_path / "d", id_field=None, columns=()))
    assert numbered[0].id == "data-00000-of-00003.arrow:1" and numbered[0].meta == {}
    assert len({d.id for d in numbered}) == 300


def test_what_was_selected_shuffled_and_saved(tmp_path):
    data = datasets.Dataset.from_list(rows(50)).shuffle(seed=0).select(range(20))
    assert data._indices is not None
    data.save_to_disk(tmp_path / "d")
    documents, _ = reader.read(config(tmp_path / "d"))
    loaded = datasets.load_from_disk(str(tmp_path / "d"))
    assert [d.text for d in documents] == loaded["text"][:] and len(documents) == 20


def test_splits(tmp_path):
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows(5)), test=datasets.Dataset.from_list(rows(3, 5))
    )
    both.save_to_disk(tmp_path / "d")
    for split, count in (("train", 5), ("test", 3)):
        documents, _ = reader.read(config(tmp_path / "d", split=split))
        assert [d.text for d in documents] == both[split]["text"][:] and len(documents) == count
    for split in ("dev", None):
        with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\]. Name one"):
            config(tmp_path / "d", split=split).units()
    with pytest.raises(ValueError, match="is one dataset without splits"):
        config(tmp_path / "d" / "train", split="train").units()
    with pytest.raises(FileNotFoundError, match="not a folder that datasets' save_to_disk made"):
        config(tmp_path).units()


def test_messages_with_keys_that_only_some_have(tmp_path):
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    ]
    datasets.Dataset.from_list([{"messages": messages}]).save_to_disk(tmp_path / "d")
    source = (
        "{% for m in messages %}[{{ m.role }}{% if m.reasoning_content is defined %}:"
        "{{ m.reasoning_content }}{% endif %}]{{ m.content }}{% endfor %}"
    )
    facts = formats.TokenizerFacts(
        special_tokens=frozenset(), bos_token=None, eos_token=None, chat_template=source
    )
    form = chat.Chat(messages_field="messages", loss="answers")
    (document,), _ = reader.read(config(tmp_path / "d", id_field=None, form=form), facts=facts)
    assert document.text == "[user]q[assistant:hm]a"  # and not [user:None]


def test_units_are_ranges_of_record_batches(tmp_path, monkeypatch):
    data = datasets.Dataset.from_list(rows(400))
    data.save_to_disk(tmp_path / "d")
    (path,) = (tmp_path / "d").glob("*.arrow")

    def rewrite(table):  # in small batches: save_to_disk puts 1,000 rows into one
        import pyarrow

        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            for row in range(0, len(table), 10):
                # A copy: a slice is written with bytes of its neighbour as padding.
                part = pyarrow.Table.from_pylist(table.slice(row, 10).to_pylist(), table.schema)
                stream.write_table(part)

    table = data.data.table
    rewrite(table)
    whole, _ = reader.read(config(tmp_path / "d"))
    numbered, _ = reader.read(config(tmp_path / "d", id_field=None))
    monkeypatch.setattr(reading, "CUT_BYTES", path.stat().st_size // 5)
    units = config(tmp_path / "d").units()
    assert len(units) == 5
    assert len({unit.key for unit in units}) == len(units)
    assert reader.read(config(tmp_path / "d"))[0] == whole
    assert reader.read(config(tmp_path / "d", id_field=None))[0] == numbered
    tally = reading.Tally()
    alone = list(config(tmp_path / "d").documents("s", units[2], tally, reader.FACTS))
    first = units[2].payload["row"]
    assert alone == whole[first : first + len(alone)] and 40 < len(alone) < 120
    assert tally.read_bytes == units[2].size_bytes

    before = [unit.fingerprint() for unit in units]
    texts = table["text"].to_pylist()
    texts[first] = texts[first][::-1]
    rewrite(table.set_column(1, table.schema.field("text"), [texts]))
    after = [unit.fingerprint() for unit in config(tmp_path / "d").units()]
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [2]
    rewrite(table.rename_columns(["id", "body", "label", "answers"]))  # changes the schema alone
    assert not set(before) & {unit.fingerprint() for unit in config(tmp_path / "d").units()}


def test_a_folder_in_a_bucket(tmp_path, monkeypatch):
    datasets.Dataset.from_list(rows(50)).save_to_disk(tmp_path / "d", num_shards=2)
    bucket = fake_bucket.install(monkeypatch)
    for path in (tmp_path / "d").iterdir():
        bucket.pipe_file(f"/b/dir/d/{path.name}", path.read_bytes())
    there = config("gs://b/dir/d")
    assert reader.read(there)[0] == reader.read(config(tmp_path / "d"))[0]
    assert there.units()[1].key == "data-00001-of-00002.arrow"


def test_bad_folders(tmp_path):
    datasets.Dataset.from_list(rows(50)).save_to_disk(tmp_path / "d")
    (path,) = (tmp_path / "d").glob("*.arrow")
    with pytest.raises(ValueError, match="has no column 'body'; it has"):
        reader.read(config(tmp_path / "d", form=formats.Text(field="body")))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="arrow is not a whole Arrow stream"):
        reader.read(config(tmp_path / "d"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"names data-00000-of-00001.arrow, which is not"):
        config(tmp_path / "d").units()
    state = tmp_path / "d" / "state.json"
    old = json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]}
    state.write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"indices mapping: .* call flatten_indices\(\)"):
        config(tmp_path / "d").units()
