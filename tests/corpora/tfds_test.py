# SPDX-License-Identifier: Apache-2.0
"""Against datasets that TFDS's own builder made, read by TFDS itself."""

import importlib.resources.abc
import subprocess
import sys

import corpora_reading as reader
import numpy as np
import pytest
import tensorflow_datasets

from midjax.corpora import formats, reading, tfds

# TFDS 4.9.10 imports it to build a dataset (not to read one), and requires it of Python 3.8 only.
sys.modules.setdefault("importlib_resources", importlib.resources)


class TinyQuestions(tensorflow_datasets.core.GeneratorBasedBuilder):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        kinds = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=kinds.FeaturesDict({
                "text": kinds.Text(), "id": np.int64, "question": kinds.Text(),
                "answers": kinds.Sequence({"text": kinds.Text(), "start": np.int32}),
            }),
        )  # fmt: skip

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(200), "test": self._generate_examples(10)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {
                "text": f"document {i} " + "ü" * (i * 13 % 31), "id": i, "question": f"q{i}?",
                "answers": [{"text": f"a{i}", "start": i}, {"text": "other", "start": 0}],
            }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    builder = TinyQuestions(data_dir=root, file_format="array_record")
    builder.download_and_prepare(
        download_config=tensorflow_datasets.download.DownloadConfig(num_shards=3)
    )
    return root / "tiny_questions" / "1.0.0"


def config(folder, split="train", *, id_field="id", form=reader.TEXT):
    return tfds.Tfds(
        path=str(folder), split=split, format=form, id_field=id_field, max_bad_records=0
    )


def expected(folder, split):
    source = tensorflow_datasets.builder_from_directory(folder).as_data_source(split=split)
    return [(str(example["id"]), example["text"].decode()) for example in source]


@pytest.mark.parametrize("split", ["train", "test", "train[:35%]", "train[70:71]", "train[-99:]"])
def test_documents_are_those_of_the_library(folder, split):
    documents, _ = reader.read(config(folder, split))
    assert reader.pairs(documents) == expected(folder, split)
    numbered, _ = reader.read(config(folder, split, id_field=None))
    assert [d.text for d in numbered] == [d.text for d in documents]
    assert len({d.id for d in numbered}) == len(numbered)
    # An example has the same id in each split that it is in.
    ids = {d.text: d.id for d in reader.read(config(folder, split.split("[")[0], id_field=None))[0]}
    assert [ids[d.text] for d in numbered] == [d.id for d in numbered]


def test_the_other_features_and_a_format(folder):
    documents, _ = reader.read(config(folder, "test"))
    by_id = {document.id: document for document in documents}
    assert by_id["3"].meta == {
        "question": "q3?", "answers": {"text": ["a3", "other"], "start": [3, 0]}
    }  # fmt: skip
    form = formats.QuestionAnswer(
        question_field="question", answer_field="answers.text.0", loss="answer",
        template="Q: {{ question }}\nA: {{ answer }}",
    )  # fmt: skip
    documents, _ = reader.read(config(folder, "test", form=form))
    by_id = {document.id: document for document in documents}
    assert by_id["3"].text == "Q: q3?\nA: a3" and by_id["3"].loss == ((10, 12),)


def test_units_are_ranges_of_examples(folder, monkeypatch):
    whole, _ = reader.read(config(folder))
    numbered, _ = reader.read(config(folder, id_field=None))
    assert len(config(folder).units()) == 3
    monkeypatch.setattr(reading, "CUT_BYTES", 3000)
    units = config(folder).units()
    assert len(units) > 5 and len({unit.key for unit in units}) == len(units)
    assert reader.read(config(folder))[0] == whole
    assert reader.read(config(folder, id_field=None))[0] == numbered
    place = units[4].payload
    alone = config(folder).documents("s", units[4], reading.Tally(), reader.FACTS)
    assert list(alone) == whole[place["begin"] : place["end"]] and place["begin"] > 0
    assert all(len(unit.fingerprint()) == 64 for unit in units)


def test_messages(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of one version. Did you mean .*/1.0.0\?"):
        config(folder.parent).units()
    with pytest.raises(ValueError, match=r"split 'dev' is not in .* It has \['test', 'train'\]"):
        config(folder, "dev").units()
    with pytest.raises(ValueError, match="Tfds reads local files only, got gs://b/d"):
        config("gs://b/d").units()


def test_a_dataset_in_tfrecords_says_how_to_convert(folder, tmp_path):
    info = (folder / "dataset_info.json").read_text()
    (tmp_path / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    (tmp_path / "features.json").write_text((folder / "features.json").read_text())
    with pytest.raises(ValueError, match="stored as tfrecord; Tfds reads array_record. Prepare it"):
        config(tmp_path).units()


def test_tensorflow_is_not_imported(folder):
    code = (
        "import sys; sys.path.insert(0, 'tests'); import corpora_reading as reader\n"
        "from midjax.corpora import tfds\n"
        "config = tfds.Tfds(path=sys.argv[1], split='test', format=reader.TEXT, id_field='id',\n"
        "                   max_bad_records=0)\n"
        "print(len(reader.read(config)[0]), 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["10", "False"], done.stderr
