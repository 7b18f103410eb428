# SPDX-License-Identifier: Apache-2.0
"""The demo data: files as the README says, splits disjoint, tokenizer exact."""

import collections
import functools
import gzip
import hashlib
import json
import pathlib
import re
import statistics

import pytest
import tokenizers

from midjax import demo_data

FOLDER = pathlib.Path(demo_data.__file__).parent
FILES = [f"{domain}.{split}.jsonl.gz" for domain in demo_data.DOMAINS for split in demo_data.SPLITS]
TOTAL_BYTES_MAX = 6_000_000
OVERLAP_WORDS = 13
LONG_LINE_CHARACTERS = 60


@functools.cache
def _raw(name: str) -> bytes:
    return gzip.decompress(pathlib.Path(demo_data.path(name)).read_bytes())


@functools.cache
def _documents(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in _raw(name).decode("utf-8").split("\n")[:-1]]


@functools.cache
def _tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(demo_data.path("tokenizer") + "/tokenizer.json")


def _split(split: str) -> list[dict[str, str]]:
    return [doc for name in FILES if f".{split}." in name for doc in _documents(name)]


def _readme_table() -> dict[str, list[str]]:
    """File name -> the other cells of its row in the README's first table."""
    rows = {}
    for line in (FOLDER / "README.md").read_text("utf-8").split("\n"):
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if re.fullmatch(r"\S+\.jsonl\.gz|tokenizer/\S+\.json|stories260K/\S+\.bin", cells[0]):
            rows[cells[0]] = cells[1:]
    return rows


def _word_runs(text: str):
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[start:] for start in range(OVERLAP_WORDS)), strict=False)


def _long_lines(text: str) -> set[str]:
    lines = (line.strip() for line in text.split("\n"))
    return {line for line in lines if len(line) >= LONG_LINE_CHARACTERS}


def test_readme_lists_every_data_file():
    data = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.gz")}
    for folder in ("tokenizer", "stories260K"):
        data |= {path.relative_to(FOLDER).as_posix() for path in (FOLDER / folder).iterdir()}
    assert set(_readme_table()) == data
    assert set(FILES) <= data


@pytest.mark.parametrize(
    "name",
    [
        *FILES,
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "stories260K/stories260K.bin",
        "stories260K/tok512.bin",
    ],
)
def test_file_is_the_one_the_readme_describes(name):
    documents, text_bytes, size, sha256, licence = _readme_table()[name]
    stored = (FOLDER / name).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == sha256
    assert licence
    if name.endswith(".gz"):
        assert len(_raw(name)) == int(size)
        assert len(_documents(name)) == int(documents)
        assert sum(len(doc["text"].encode()) for doc in _documents(name)) == int(text_bytes)
    else:
        assert len(stored) == int(size)


def test_together_under_six_megabytes_uncompressed():
    assert sum(len(_raw(name)) for name in FILES) < TOTAL_BYTES_MAX


@pytest.mark.parametrize("name", FILES)
def test_gzip_header_has_no_time_and_no_name(name):
    header = (FOLDER / name).read_bytes()[:10]
    assert header[3] == 0, "gzip flags: a file name or comment is stored"
    assert header[4:8] == b"\0\0\0\0", "gzip modification time is not 0"


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_document(name):
    assert _raw(name).endswith(b"\n")
    for doc in _documents(name):
        assert list(doc) == ["id", "text", "origin"]
        assert all(isinstance(value, str) and value for value in doc.values())
        text = doc["text"]
        assert text.endswith("\n") and not text.endswith("\n\n"), doc["id"]
        assert not re.search(r"[\r\ufffd\ufeff]|[ \t]\n", text), doc["id"]


def test_ids_are_unique_over_all_files():
    counts = collections.Counter(doc["id"] for name in FILES for doc in _documents(name))
    assert [doc_id for doc_id, count in counts.items() if count > 1] == []


def test_held_out_comes_from_other_books_and_packages():
    for domain in ("prose", "code"):
        train, heldout = (
            {doc["origin"] for doc in _documents(f"{domain}.{split}.jsonl.gz")}
            for split in demo_data.SPLITS
        )
        assert not train & heldout


def test_train_and_held_out_share_no_13_words_and_no_long_line():
    runs, lines = set(), set()
    for doc in _split("heldout"):
        runs.update(_word_runs(doc["text"]))
        lines |= _long_lines(doc["text"])
    assert len(runs) > 50_000 and len(lines) > 1_000
    shared = {
        doc["id"]
        for doc in _split("train")
        if not runs.isdisjoint(_word_runs(doc["text"])) or lines & _long_lines(doc["text"])
    }
    assert shared == set()


def test_maths_is_rendered_without_annotations():
    for split in demo_data.SPLITS:
        for doc in _documents(f"maths.{split}.jsonl.gz"):
            text = doc["text"]
            assert re.match(r"Question: [^\n]+\nAnswer: ", text), doc["id"]
            assert re.search(r"\nThe answer is -?[\d,.]*\d\.\n\Z", text), doc["id"]
            assert "<<" not in text and ">>" not in text and "####" not in text


def test_prose_is_long_and_free_of_markup():
    for split in demo_data.SPLITS:
        docs = _documents(f"prose.{split}.jsonl.gz")
        lengths = [len(_tokenizer().encode(doc["text"]).ids) for doc in docs]
        assert statistics.median(lengths) > 1_500
        markup = re.compile(r"[*_]|^#|Gutenberg|  ", re.MULTILINE)
        assert [doc["id"] for doc in docs if markup.search(doc["text"])] == []
        if split == "heldout":
            assert min(lengths) > 1_024


def test_licences_are_kept():
    notices = (FOLDER / "LICENSES.txt").read_text("utf-8")
    code = (name for name in FILES if name.startswith("code."))
    origins = {doc["origin"] for name in code for doc in _documents(name)}
    for origin in origins:
        package_and_version, licence = origin.split(", ")
        assert f"\n{package_and_version}\n" in notices
        assert "MIT" in licence or "BSD" in licence
    assert "\nGSM8K\n" in notices and "Copyright (c) 2021 OpenAI" in notices
    assert "\nstories260K\n" in notices and "Copyright (c) 2023 Andrej" in notices


def test_tokenizer_specials():
    tokenizer = _tokenizer()
    assert tokenizer.get_vocab_size() == 2_048
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    assert [tokenizer.token_to_id(token) for token in specials] == [0, 1, 2]
    config = json.loads((FOLDER / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    assert [config[key] for key in ("bos_token", "eos_token", "pad_token")] == specials
    assert config["clean_up_tokenization_spaces"] is False
    assert tokenizer.encode("Hello").ids == tokenizer.encode("Hello", add_special_tokens=False).ids


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n  x\t\r\n", "naïve — “q” 😀 中文", "\x00\x7f", " a .  b 's n't"]
)
def test_tokenizer_round_trips_awkward_text(text):
    assert _tokenizer().decode(_tokenizer().encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("domain", demo_data.DOMAINS)
def test_tokenizer_round_trips_held_out(domain):
    tokens = text_bytes = 0
    for doc in _documents(f"{domain}.heldout.jsonl.gz"):
        ids = _tokenizer().encode(doc["text"]).ids
        assert _tokenizer().decode(ids, skip_special_tokens=False) == doc["text"]
        tokens += len(ids)
        text_bytes += len(doc["text"].encode())
    assert 2.5 < text_bytes / tokens < 3.5


def test_tokenizer_splits_digits():
    assert _tokenizer().encode("12345").tokens == list("12345")


def test_tokenizer_loads_in_transformers():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_data.path("tokenizer"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    text = _documents("code.heldout.jsonl.gz")[0]["text"]
    assert tokenizer.encode(text) == _tokenizer().encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_path_names_what_there_is():
    with pytest.raises(ValueError, match="prose.train.jsonl.gz"):
        demo_data.path("prose")
