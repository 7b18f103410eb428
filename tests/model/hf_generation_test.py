# SPDX-License-Identifier: Apache-2.0
"""Token ids and settings for generation: read, kept below runs, checked."""

import json
import pathlib

import pytest

from midjax.model import hf_generation

SETTINGS = '{\n    "eos_token_id": [1, 106],  \n "top_k": 64, "temperature": null}'


def folder(place: pathlib.Path, config: dict, generation: str | None = SETTINGS) -> str:
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    (place / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (place / "generation_config.json").write_text(generation)
    return str(place)


def test_it_goes_from_run_to_run_byte_for_byte(tmp_path):
    source = folder(tmp_path / "hf", {"eos_token_id": [1, 106], "hidden_size": 3})
    first, second, third = (str(tmp_path / name) for name in ("first", "second", "third"))
    hf_generation.keep(hf_generation.read(source), first)
    hf_generation.carry(second, run=first, folder=None)
    hf_generation.carry(third, run=None, folder=source)
    for run in (first, second, third):
        found = hf_generation.kept(run)
        assert found.generation == SETTINGS.encode()
        assert found.ids == {"eos_token_id": [1, 106]}
    # A run that goes on keeps what it has, as somebody may have corrected it.
    folder(pathlib.Path(second, hf_generation.FOLDER), {"eos_token_id": 7}, None)
    hf_generation.carry(second, run=first, folder=None)
    assert hf_generation.kept(second).ids == {"eos_token_id": 7}


def test_a_run_whose_start_says_nothing(tmp_path):
    hf_generation.carry(str(tmp_path / "run"), run=str(tmp_path / "before"), folder=None)
    hf_generation.carry(str(tmp_path / "run"), run=None, folder=None)
    assert hf_generation.kept(str(tmp_path / "run")) is None
    assert not (tmp_path / "run").exists()


def test_the_language_model_of_several_parts_counts(tmp_path):
    """Gemma 3 with its vision tower: ids of the whole, but where the language model has its own."""
    theirs = {
        "model_type": "gemma3", "eos_token_id": [1, 106], "pad_token_id": 3,
        "text_config": {"model_type": "gemma3_text", "pad_token_id": 0},
    }  # fmt: skip
    found = hf_generation.read(folder(tmp_path, theirs, None))
    assert found.ids == {"eos_token_id": [1, 106], "pad_token_id": 0}
    assert found.generation is None


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": [1, 106]}, (1, 106)),
        ({"eos_token_id": [2, 3]}, {"temperature": 0.6}, (2, 3)),
        ({"eos_token_id": 2}, None, (2,)),
        ({}, None, ()),
    ],
)
def test_what_ends_a_text(tmp_path, config, generation, ids):
    generation = None if generation is None else json.dumps(generation)
    assert hf_generation.read(folder(tmp_path, config, generation)).eos_ids == ids


def test_ids_are_looked_up(tmp_path):
    found = hf_generation.read(folder(tmp_path, {"bos_token_id": 5, "eos_token_id": None}))
    asked = []
    hf_generation.check(found, lambda number: asked.append(number) or True)
    assert asked == [5, 1, 106]
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is 106, and the"):
        hf_generation.check(found, lambda number: number < 100)


@pytest.mark.parametrize(
    ("config", "generation", "message"),
    [
        ({"eos_token_id": "two"}, None, "eos_token_id is 'two'; an id is a number"),
        ({"eos_token_id": [1, True]}, None, "an id is a number, a list of numbers, or null"),
        ({}, "[]", r"generation_config\.json is not a JSON object"),
        ({}, "{", "is not JSON"),
        ({}, " " * (1 << 20) + "{}", "has over 1048576 bytes"),
    ],
)
def test_what_is_refused(tmp_path, config, generation, message):
    with pytest.raises(ValueError, match=message):
        hf_generation.read(folder(tmp_path, config, generation))


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        hf_generation.read(str(tmp_path))
