# SPDX-License-Identifier: Apache-2.0
"""Documents in every public form; what is missing says where it is to be had."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from midjax.evals import task, task_data, task_parts

RECORDS = [{"q": f"question {i}", "n": i, "key": f"k{i}", "part": "uv"[i % 2]} for i in range(6)]
FILE = """
source = "a test"
kind = "gold"
primary = "bits_per_byte"
prompt = "{{q}}"
answer = "x"
metrics = [{ name = "bits_per_byte" }]
"""
DATA = '\n[data]\npath = "set/{split}"\nsplit = "test"\nlicence = "MIT"\nhub = "who/set"\n'


def a_task(tmp_path, more="", before=""):
    path = tmp_path / "mine.toml"
    path.write_text(before + FILE + DATA + more)
    return task.load(str(path))


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def put(tmp_path, name, data):
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_parquet(tmp_path, name, records):
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)


FORMS = {
    "jsonl": lambda p: put(p, "test.jsonl", lines(RECORDS)),
    "jsonl.gz": lambda p: put(p, "test.jsonl.gz", gzip.compress(lines(RECORDS))),
    "jsonl.zst": lambda p: put(
        p, "test.jsonl.zst", pyarrow.compress(lines(RECORDS), codec="zstd", asbytes=True)
    ),
    "json lines in .json": lambda p: put(p, "test.json", lines(RECORDS)),
    "json": lambda p: put(p, "test.json", json.dumps(RECORDS, indent=2).encode()),
    "parquet": lambda p: write_parquet(p, "test.parquet", RECORDS),
    "parquet in parts": lambda p: [
        write_parquet(p, f"test-0000{i}-of-00002.parquet", RECORDS[3 * i : 3 * i + 3])
        for i in range(2)
    ],
    "parts in a folder": lambda p: [
        put(p, f"test/{i}.jsonl", lines(RECORDS[2 * i : 2 * i + 2])) for i in range(3)
    ],
    "datasets": lambda p: datasets.Dataset.from_list(RECORDS).save_to_disk(str(p / "set/test")),
    "datasets with splits": lambda p: datasets.DatasetDict(
        {"test": datasets.Dataset.from_list(RECORDS)}
    ).save_to_disk(str(p / "set")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_documents(tmp_path, form):
    FORMS[form](tmp_path)
    found = task_data.read(a_task(tmp_path), str(tmp_path))
    assert [dict(document.fields) for document in found] == RECORDS
    assert [document.id for document in found] == list("012345")


def test_missing_data_say_where_to_get_them_and_where_to_put_them(tmp_path):
    with pytest.raises(task_data.MissingDataError) as caught:
        task_data.read(a_task(tmp_path), str(tmp_path))
    for words in (f"{tmp_path}/set/test", "Hugging Face data set who/set", "licence MIT"):
        assert words in str(caught.value)


def test_the_hub_is_asked_only_on_request(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return iter(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    mine = a_task(tmp_path, 'config = "c"\n')
    found = task_data.read(mine, str(tmp_path), online=True)
    assert asked == [("who/set", "c", "test")]
    assert [dict(document.fields) for document in found] == RECORDS
    put(tmp_path, "test.jsonl", lines(RECORDS[:1]))
    assert len(task_data.read(mine, str(tmp_path), online=True)) == 1 and len(asked) == 1


def test_ids_subsets_and_what_is_kept(tmp_path):
    put(tmp_path, "test.jsonl", lines(RECORDS))
    more = 'id = "key"\nsubset = "part"\nkeep = "n > 0"\n'
    mine = a_task(tmp_path, more, before='subsets = ["v", "u"]\n')
    found = task_data.read(mine, str(tmp_path))
    assert [document.id for document in found] == ["v/k1", "v/k3", "v/k5", "u/k2", "u/k4"]
    with pytest.raises(ValueError, match="no document of 'w'"):
        task_data.read(a_task(tmp_path, more, before='subsets = ["w"]\n'), str(tmp_path))


def test_some_subsets_and_another_sample(tmp_path):
    put(tmp_path, "test.jsonl", lines(RECORDS))
    more = 'subset = "part"\nsample = { count = 1 }\n'
    mine = a_task(tmp_path, more, before='subsets = ["u", "v"]\n')
    assert len(task_data.read(mine, str(tmp_path))) == 2
    two = task_parts.Sample(count=2)
    found = task_data.read(mine, str(tmp_path), subsets=["v"], sample=two)
    assert len(found) == 2 and {document.subset for document in found} == {"v"}
    with pytest.raises(ValueError, match="mine has no subset 'w'"):
        task_data.read(mine, str(tmp_path), subsets=["w"])


def test_two_documents_with_one_id_are_refused(tmp_path):
    put(tmp_path, "test.jsonl", lines(RECORDS))
    with pytest.raises(ValueError, match="Two documents of mine have the id 'u'"):
        task_data.read(a_task(tmp_path, 'id = "part"\n'), str(tmp_path))


def test_rows_of_a_record_become_documents(tmp_path):
    nested = {"title": "t", "body": {"qs": [{"q": "a"}, {"q": "b"}]}, "canary": "c"}
    put(tmp_path, "test.json", json.dumps(nested, indent=1).encode())
    found = task_data.read(a_task(tmp_path, 'rows = "body.qs"\n'), str(tmp_path))
    assert [(d.fields["title"], d.fields["q"], d.fields["row"]) for d in found] == [
        ("t", "a", 0),
        ("t", "b", 1),
    ]
    with pytest.raises(ValueError, match="data.rows is 'other'"):
        task_data.read(a_task(tmp_path, 'rows = "other"\n'), str(tmp_path))


def test_records_are_joined_and_merged(tmp_path):
    put(tmp_path, "test.jsonl", lines([{"id": "x", "q": 1}, {"id": "y", "q": 2}]))
    put(tmp_path, "gold.jsonl", lines([{"id": "y", "g": 4}, {"id": "x", "g": 3}]))
    found = task_data.read(a_task(tmp_path, 'join = "set/gold"\n'), str(tmp_path))
    assert [document.fields["joined"]["g"] for document in found] == [3, 4]
    put(
        tmp_path,
        "test.jsonl",
        lines([{"id": "x", "q": 1}, {"id": "y", "q": 2}, {"id": "x", "q": 3}]),
    )
    found = task_data.read(a_task(tmp_path, 'merge = "id"\n'), str(tmp_path))
    assert [[one["q"] for one in d.fields["merged"]] for d in found] == [[1, 3], [2]]


def test_a_sample_is_the_one_that_olmes_draws():
    """OLMES's sets of 1,000 begin with these questions of BoolQ and NaturalQuestions."""
    sample = task_parts.Sample(count=1000)
    for total, first in ((3270, ["3187", "1805", "478", "30", "371"]), (3610, ["3187"])):
        documents = [task_data.Document(id=str(i), subset="", fields={}) for i in range(total)]
        drawn = task_data.sampled(documents, sample)
        assert [document.id for document in drawn][: len(first)] == first
        rest = task_data.sampled(documents, task_parts.Sample(count=1000, keep="rest"))
        assert len(drawn) == 1000 and len(rest) == total - 1000
        assert {d.id for d in drawn}.isdisjoint(d.id for d in rest)


def test_gsm8k_for_selection_and_what_is_held_out_share_nothing(tmp_path):
    rows = [{"question": str(i), "answer": "#### 1"} for i in range(1319)]
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_bytes(lines(rows))
    chosen, held = (
        {d.id for d in task_data.read(task.load(name), str(tmp_path))}
        for name in ("gsm8k_selection", "gsm8k_held_out")
    )
    assert len(chosen) == 200 and len(held) == 1119 and not chosen & held


def test_files_with_several_subsets_and_one_for_each(tmp_path):
    anatomy = {"question": "q", "choices": list("abcd"), "answer": 0, "subject": "anatomy"}
    mmlu = task.load("mmlu_rc")
    records = [anatomy | {"subject": subject} for subject in mmlu.subsets]
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "test.jsonl").write_bytes(lines(records))
    assert len(task_data.read(mmlu, str(tmp_path))) == 57
    for subject in mmlu.subsets:
        folder = tmp_path / "other" / "mmlu" / subject
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_bytes(lines([anatomy | {"subject": subject}] * 2))
    assert len(task_data.read(mmlu, str(tmp_path / "other"))) == 114


def test_damaged_lines_are_named(tmp_path):
    put(tmp_path, "test.jsonl", lines(RECORDS[:2]) + b"{half\n")
    with pytest.raises(ValueError, match="test.jsonl, line 3"):
        task_data.read(a_task(tmp_path), str(tmp_path))
    put(tmp_path, "test.jsonl", b"<html>\n")
    with pytest.raises(ValueError, match="neither JSON nor JSON lines"):
        task_data.read(a_task(tmp_path), str(tmp_path))
