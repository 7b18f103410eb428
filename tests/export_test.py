# SPDX-License-Identifier: Apache-2.0
"""The verb `export`: the folder, its check, its model card, and its refusals."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import tokenizers

from midjax import export, export_check
from midjax.model import hf, hf_generation, hf_rows, rope, sharding

SPECIAL = ["<bos>", "<eos>", "<pad>"]
LINEAGE = {
    "name": "tiny",
    "license": "apache-2.0",
    "source": {"run": "runs/base", "step": 300},
    "mixture seen": {"maths": 0.25, "prose": 0.75},
    "stages": ["decay", "long"],
    "runs": [{"run": "base", "step": 3}, {"run": "after", "step": 4}],
    "nothing": None,
    "evals": {
        "before": {"domains": {"maths": {"bits_per_byte": 1.5}}},
        "after": {"domains": {"maths": {"bits_per_byte": 1.25}, "prose": {"bits_per_byte": 2.0}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([export.PROMPT], trainer)
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": {"__type": "AddedToken", "content": "<eos>", "special": True},
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def config_of(tmp_path, tokenizer, **kwargs):
    given = {
        "run": "runs/tiny",
        "step": 40,
        "output": str(tmp_path / "out"),
        "tokenizer": str(tokenizer),
        "dtype": "float32",
        "mesh": sharding.Mesh(data=1, fsdp=1, tensor=1),
    }
    return export.Export(**(given | kwargs))


def model(**kwargs):
    config = tiny_model.config(**({"vocab_size": 300, "head_dim": 8} | kwargs))
    return config, tiny_model.params(config)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "yarn"), ("bfloat16", "llama3")])
def test_transformers_reads_the_folder(tmp_path, tokenizer, dtype, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, params = model(rope=tiny_model.ROPES[kind], tied_head=True)
    wanted = config_of(tmp_path, tokenizer, dtype=dtype)
    result = export.run(wanted, config, params, LINEAGE)
    assert result.compared_with == f"transformers {transformers.__version__}"
    assert result.not_compared is None and result.token_ids_from == "the tokenizer"
    assert result.compared_tensors == 2 + 9 * config.layers
    assert result.max_difference < 2e-5
    assert result.compared_tokens > 50
    assert set(result.written) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    theirs = transformers.AutoTokenizer.from_pretrained(result.folder)
    ours = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert (
        theirs(export.PROMPT, add_special_tokens=False).input_ids == ours.encode(export.PROMPT).ids
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(result.folder)
    ids = loaded.generation_config
    assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (0, 1, 2)
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id) == (0, 1)
    out = loaded.generate(torch.tensor([[0, 5, 7]]), max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= 6


def without_torch(monkeypatch):
    found = export_check.importlib.util.find_spec
    monkeypatch.setattr(
        export_check.importlib.util,
        "find_spec",
        lambda name: None if name == "torch" else found(name),
    )


def test_our_own_reader_where_torch_is_absent(tmp_path, tokenizer, monkeypatch):
    without_torch(monkeypatch)
    config, params = model(compute_dtype="bfloat16")
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    wanted = config_of(tmp_path, tokenizer, dtype="bfloat16")
    result = export.run(wanted, config, params, {}, token_ids=tokens)
    assert (result.compared_with, result.compared_tokens) == ("midjax", 24)
    assert result.not_compared == "PyTorch and transformers are not installed"
    assert result.max_difference == 0 and result.compared_tensors == 3 + 9 * config.layers


# As Llama 3.1 Instruct has them: three ways to end, and no key for padding in config.json.
LISTED = {"bos_token_id": 0, "eos_token_id": [1, 7, 9]}
GENERATION = {
    "bos_token_id": 0, "eos_token_id": [1, 7, 9], "pad_token_id": 2, "do_sample": True,
    "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.42.3",
}  # fmt: skip


def said(tmp_path, ids=LISTED, generation=GENERATION) -> hf_generation.Said:
    folder = tmp_path / "theirs"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **ids}))
    if generation is not None:
        # Another layout than ours: what is kept is kept byte for byte.
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=3))
    return hf_generation.read(str(folder))


def test_what_the_source_said_of_generation_is_kept(tmp_path, tokenizer, monkeypatch):
    without_torch(monkeypatch)
    config, params = model()
    source = said(tmp_path)
    result = export.run(config_of(tmp_path, tokenizer), config, params, {}, said=source)
    assert result.token_ids_from == str(tmp_path / "theirs")
    out = pathlib.Path(result.folder)
    assert (out / "generation_config.json").read_bytes() == source.generation
    written = json.loads((out / "config.json").read_text())
    assert {key: written[key] for key in hf_generation.IDS} == LISTED | {"pad_token_id": None}
    again = export.run(
        config_of(tmp_path, tokenizer, output=str(tmp_path / "again")), config, params, {},
        said=hf_generation.read(result.folder),
    )  # fmt: skip
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (out / name).read_bytes() == pathlib.Path(again.folder, name).read_bytes(), name

    transformers = pytest.importorskip("transformers")
    want, found = (
        transformers.GenerationConfig.from_pretrained(str(folder))
        for folder in (tmp_path / "theirs", out)
    )
    assert found.to_dict() == want.to_dict()
    assert (found.eos_token_id, found.pad_token_id, found.temperature) == ([1, 7, 9], 2, 0.6)
    assert transformers.AutoConfig.from_pretrained(str(out)).eos_token_id == [1, 7, 9]


def test_a_source_without_settings_has_its_ids_kept(tmp_path, tokenizer, monkeypatch):
    without_torch(monkeypatch)
    config, params = model()
    source = said(tmp_path, {"eos_token_id": [1, 4], "pad_token_id": 5}, None)
    export.run(config_of(tmp_path, tokenizer), config, params, {}, said=source)
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == {
        "_from_model_config": True, "bos_token_id": 0, "eos_token_id": [1, 4], "pad_token_id": 5,
    }  # fmt: skip


def test_ids_that_the_tokenizer_has_not(tmp_path, tokenizer):
    config, params = model()
    for source, where in (
        (said(tmp_path, {"eos_token_id": [1, 300]}), r"config\.json: eos_token_id is 300"),
        (
            said(tmp_path, generation=GENERATION | {"pad_token_id": -1}),
            r"theirs/generation_config\.json: pad_token_id is -1",
        ),
    ):
        with pytest.raises(ValueError, match=f"{where}, and the tokenizer has no such token"):
            export.run(config_of(tmp_path, tokenizer), config, params, {}, said=source)
    assert not (tmp_path / "out").exists()


def test_export_import_export_is_bit_identical(tmp_path, tokenizer, monkeypatch):
    without_torch(monkeypatch)
    config, params = model(rope=tiny_model.NTK)
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    export.run(config_of(tmp_path, tokenizer, output=first), config, params, LINEAGE)
    config_1, params_1 = hf.load(first)
    export.run(config_of(tmp_path, tokenizer, output=second), config_1, params_1, LINEAGE)
    config_2, params_2 = hf.load(second)
    assert config_1 == config_2
    jax.tree.map(np.testing.assert_array_equal, params_1, params_2)
    jax.tree.map(np.testing.assert_array_equal, params, params_2)
    for name in ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json"):
        pair = [pathlib.Path(folder, name).read_bytes() for folder in (first, second)]
        assert pair[0] == pair[1], name


def test_a_folder_that_holds_something_else_is_an_error(tmp_path, tokenizer, monkeypatch):
    """As if the head sizes of wq had been written interleaved."""
    ours = hf_rows.theirs

    def wrong(tensor, params):
        for piece in ours(tensor, params):
            yield np.flip(piece, 0) if "q_proj" in tensor.name else piece

    monkeypatch.setattr(hf_rows, "theirs", wrong)
    config, params = model()
    with pytest.raises(
        RuntimeError, match=r"layers\.0\.self_attn\.q_proj\.weight, read back, is not"
    ):
        export.run(config_of(tmp_path, tokenizer), config, params, {})


@pytest.mark.parametrize("torch", [True, False])
def test_a_folder_that_computes_something_else_is_an_error(tmp_path, tokenizer, monkeypatch, torch):
    """The right numbers under a config.json of another rotary embedding."""
    if torch:
        pytest.importorskip("torch")
    else:
        without_torch(monkeypatch)
    ours = hf.config_to_hf

    def wrong(config, **kwargs):
        turned = rope.Rope(theta=500.0, scaling=rope.RopeScaling(kind="none"))
        return ours(dataclasses.replace(config, rope=turned), **kwargs)

    monkeypatch.setattr(hf, "config_to_hf", wrong)
    config, params = model()
    with pytest.raises(RuntimeError, match="computes other logits"):
        export.run(config_of(tmp_path, tokenizer), config, params, {})


def test_not_a_number_is_an_error(tmp_path, tokenizer, monkeypatch):
    without_torch(monkeypatch)
    config, params = model()
    params["final_norm"] = params["final_norm"] * jnp.nan
    with pytest.raises(RuntimeError, match="computes other logits"):
        export.run(config_of(tmp_path, tokenizer), config, params, {})


def test_model_card(tmp_path, tokenizer):
    config, _ = model(rope=tiny_model.YARN)
    card = export.model_card(config_of(tmp_path, tokenizer), config, LINEAGE)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\nlicense: apache-2.0\n---\n" in card
    assert "# tiny\n" in card and "run `runs/tiny`, step 40" in card
    assert "- source:\n  - run: runs/base\n  - step: 300\n" in card
    assert "- stages:\n  - decay\n  - long\n" in card
    assert "- runs:\n  - run: base\n    - step: 3\n  - run: after\n    - step: 4\n" in card
    assert "| bits per byte | before | after |" in card
    assert "| maths | 1.5000 | 1.2500 |" in card and "| prose |  | 2.0000 |" in card
    assert "nothing" not in card
    assert "scaling yarn" in card


def test_a_loss_that_was_not_finite_is_said_in_the_card(tmp_path, tokenizer):
    evals = {"after": {"domains": {"maths": {"bits_per_byte": None}}}}
    card = export.model_card(config_of(tmp_path, tokenizer), model()[0], {"evals": evals})
    assert "| maths | not finite |" in card
    assert "Evaluation on tasks" not in card


def test_tasks_are_in_the_card_by_their_primary_metric(tmp_path, tokenizer):
    def ranked(value, limit=None):
        return {
            "primary": "acc",
            "metrics": {"acc": 0.1, "bits_per_byte": 3.0},
            "macro": {"acc": value},
            "documents": 8,
            "settings": {"shots": 5, "limit": limit},
        }

    written = ranked(0.0)
    del written["macro"]
    evals = {
        "core": {"tasks": {"mmlu_rc": ranked(0.25), "gsm8k": written}, "domains": {}},
        "core.against": {},  # the comparison with a parent is no evaluation
        "look": {"tasks": {"mmlu_rc": ranked(None, limit=4)}},
    }
    card = export.model_card(config_of(tmp_path, tokenizer), model()[0], {"evals": evals})
    assert card.partition("## Evaluation on ")[2].splitlines() == [
        "tasks",
        "",
        "| task | core | look |",
        "|---|---|---|",
        "| gsm8k, acc, 5 examples | 0.1000 |  |",
        "| mmlu_rc, acc, 5 examples | 0.2500 |  |",
        "| mmlu_rc, acc, 5 examples, 8 documents |  | not finite |",
    ]


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path, tokenizer):
    config, params = model()
    with pytest.raises(ValueError, match=r"another tokenizer \(sha256 aaaaaaaaaaaa\) than"):
        export.run(config_of(tmp_path, tokenizer), config, params, {}, tokenizer_hash="a" * 64)
    assert not (tmp_path / "out").exists()


def test_the_prompt_is_cut_to_the_context(tokenizer):
    made = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    ids = export.prompt_ids(made, 0, 10)
    assert ids.shape == (1, 10) and ids[0, 0] == 0


def test_bad_input(tmp_path, tokenizer):
    config, params = model()
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json"):
        export.run(config_of(tmp_path, tmp_path), config, params, {})
    small, small_params = model(vocab_size=64)
    with pytest.raises(ValueError, match="has 300 tokens and the model 64"):
        export.run(config_of(tmp_path, tokenizer), small, small_params, {})
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"Export\.dtype is 'int8'"):
        config_of(tmp_path, tokenizer, dtype="int8")
    with pytest.raises(ValueError, match=r"Export\.step"):
        config_of(tmp_path, tokenizer, step=-1)
