# SPDX-License-Identifier: Apache-2.0
"""The verb from token folders to the JSON file, its errors, and the same numbers on a mesh."""

import dataclasses
import json
import math
import subprocess
import sys
import textwrap

import devices
import jax
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from midjax import files
from midjax.batches import tokenize, vocabulary
from midjax.corpora import formats, text
from midjax.evals import generate, loss, needle, record
from midjax.evals import run as evals
from midjax.model import architecture, rope, sharding, transformer

TEXTS = {
    "code": ["def f(x):\n    return x\n", "import os\n", "x = 1\n" * 20],
    "prose": ["Ünïcode counts in bytes.", "A short one."],
}


def save_tokenizer(folder, specials=("<s>", "</s>")):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def tokenized(tmp_path, output, tokenizer, **changes):
    sources = {}
    for name, texts in TEXTS.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        sources[name] = text.JsonLines(
            path=str(path),
            format=formats.Text(field="text"),
            id_field=None,
            max_bad_records=0,
        )
    fields = {"bos_token": "<s>", "eos_token": "</s>"} | changes
    tokenize.run(
        tokenize.Tokenize(
            sources=sources,
            tokenizer=vocabulary.FastTokenizer(path=tokenizer, **fields),
            output=output,
            shard_tokens=1000,
            processes=1,
        )
    )


def model(**changes):
    fields = {
        "vocab_size": 260,
        "dim": 16,
        "layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 8,
        "ffn_dim": 24,
        "norm_eps": 1e-5,
        "tied_head": False,
        "context_tokens": 64,
        "rope": rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="none")),
        "initializer_std": 0.3,
        "param_dtype": "float32",
        "compute_dtype": "float32",
        "remat": "none",
        "loss_chunk_tokens": 32,
    }
    return architecture.TransformerConfig(**(fields | changes))


@pytest.fixture
def config(tmp_path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    tokenized(tmp_path, str(tmp_path / "tokens"), tokenizer)
    return evals.Eval(
        name="after",
        run=str(tmp_path / "run"),
        step=None,
        tokens=str(tmp_path / "tokens"),
        domains=("code", "prose"),
        row_tokens=32,
        batch_rows=2,
        long=loss.LongDocuments(source="code", row_tokens=96, bucket_tokens=32, batch_rows=2),
        samples=generate.Samples(
            prompts=("def f", "Once"), max_new_tokens=6, temperature=0.0, seed=0
        ),
        tokenizer=tokenizer,
        mesh=sharding.Mesh(data=1, fsdp=1, tensor=1),
    )


def test_uniform_model_end_to_end(config):
    model_config = model()
    params = transformer.init(model_config, jax.random.key(0))
    params["head"] = params["head"] * 0
    result = evals.run(config, model_config, params, 12)
    path = evals.write(result)
    assert path == f"{config.run}/eval/after.json"
    assert result.pop("documents") == [] and files.read_json(path) == result
    assert not list(files.path(config.run).glob("eval/*.documents.jsonl"))
    (line,) = record.read(config.run)
    scores = {f"domain/{name}/bits_per_byte": pytest.approx(math.log2(260)) for name in TEXTS}
    assert (line["step"], line["name"], line["scores"]) == (12, "after", scores)

    assert (result["name"], result["run"], result["step"]) == ("after", config.run, 12)
    assert result["compute_dtype"] == "float32"
    for name, texts in TEXTS.items():
        found = result["domains"][name]
        size = sum(len(t.encode()) for t in texts)
        # A byte-level tokenizer without merges: one token per byte.
        assert (found["tokens"], found["bytes"], found["documents"]) == (size, size, len(texts))
        assert found["bits_per_byte"] == pytest.approx(math.log2(260), rel=1e-6)
    position = result["by_position"]
    assert (position["source"], position["row_tokens"], position["documents"]) == ("code", 96, 1)
    assert [b["tokens"] for b in position["buckets"]] == [32, 32, 32]
    assert all(
        b["nats_per_token"] == pytest.approx(math.log(260), rel=1e-6) for b in position["buckets"]
    )
    # All logits equal: greedy takes id 0, a special token, which has no text.
    assert result["samples"] == [
        {"prompt": "def f", "continuation": ""},
        {"prompt": "Once", "continuation": ""},
    ]


def test_parts_can_be_left_out(config):
    short = dataclasses.replace(config, long=None, samples=None, domains=("prose",))
    model_config = model()
    params = transformer.init(model_config, jax.random.key(0))
    result = evals.run(short, model_config, params, 1)
    assert result["by_position"] is None and result["samples"] == []
    assert result["needle"] is result["long_tasks"] is None
    assert list(result["domains"]) == ["prose"]


@pytest.mark.parametrize(
    ("changes", "model_changes", "error", "words"),
    [
        ({"domains": ("code", "law")}, {}, FileNotFoundError, "law is not a finished token folder"),
        ({}, {"vocab_size": 256}, ValueError, "has 258 tokens, the model .* has 256"),
        ({"row_tokens": 65}, {}, ValueError, "exceeds the model's context of 64"),
        ({"tokenizer": "/nowhere"}, {}, FileNotFoundError, "No tokenizer.json in '/nowhere'"),
    ],
)
def test_bad_inputs_are_refused_before_the_model_runs(config, changes, model_changes, error, words):
    with pytest.raises(error, match=words):
        evals.run(dataclasses.replace(config, **changes), model(**model_changes), None, 1)


def test_needles_of_a_uniform_model(config):
    model_config = model()
    params = transformer.init(model_config, jax.random.key(0))
    params["head"] = params["head"] * 0
    asked = dataclasses.replace(config, long=None, samples=None, needle=hidden_keys())
    result = evals.run(asked, model_config, params, 1)["needle"]
    assert result["source"] == "code" and result["per_cell"] == 2
    for cell in result["cells"]:
        assert cell["nats_per_token"] == pytest.approx(math.log(260), rel=1e-6)
        assert cell["nats_without"] == pytest.approx(math.log(260), rel=1e-6)
        assert cell["accuracy"] == 0.0


def test_needles_are_checked_before_the_model_runs(config):
    needles = dataclasses.replace(hidden_keys(), row_tokens=(2000,))
    with pytest.raises(ValueError, match=r"'code' has 153 tokens of text.* 2000 tokens needs"):
        evals.run(dataclasses.replace(config, needle=needles), model(), None, 1)
    other = dataclasses.replace(hidden_keys(), source="law")
    with pytest.raises(FileNotFoundError, match="law is not a finished token folder"):
        evals.run(dataclasses.replace(config, needle=other), model(), None, 1)


def test_long_tasks_are_checked_before_the_model_runs(config):
    long_tasks = evals.long_run.LongTasks(source="code", row_tokens=(400,), per_cell=1)
    for changes, error, words in (
        ({}, ValueError, "'code' has 153 tokens of text, and the longest row 400"),
        ({"source": "law"}, FileNotFoundError, "law is not a finished token folder"),
        ({"row_tokens": (150,), "tasks": ("fwe",)}, ValueError, "row_tokens=150 is too short for"),
        ({"row_tokens": (150,), "tasks": ("qa_squad",)}, FileNotFoundError, "LongTasks.squad is"),
    ):
        asked = dataclasses.replace(config, long_tasks=dataclasses.replace(long_tasks, **changes))
        with pytest.raises(error, match=words):
            evals.run(asked, model(), None, 1)


def test_long_documents_must_exist(config):
    long = dataclasses.replace(config.long, row_tokens=960, bucket_tokens=96)
    with pytest.raises(ValueError, match=r"has 961 tokens; the longest has 122"):
        evals.run(dataclasses.replace(config, long=long), model(), None, 1)


def test_another_tokenizer_is_refused(config, tmp_path):
    other = save_tokenizer(tmp_path / "other", specials=("<s>", "</s>", "<pad>"))
    with pytest.raises(ValueError, match="was tokenized with another tokenizer"):
        evals.run(dataclasses.replace(config, tokenizer=other), model(), None, 1)


def test_another_tokenizer_than_the_model_had_is_refused(config):
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        evals.run(config, model(), None, 1, tokenizer_hash="0" * 64)


def test_tokens_without_bos_are_refused(config, tmp_path):
    tokenized(tmp_path, config.tokens, config.tokenizer, bos_token=None)
    with pytest.raises(ValueError, match="tokenized without BOS"):
        evals.run(config, model(), None, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "plain file name"),
        ({"domains": (), "long": None, "samples": None}, "Eval asks nothing"),
        ({"domains": ("code", "code")}, "more than once"),
        ({"row_tokens": 0}, "row_tokens must be 1 or more"),
        ({"batch_rows": 0}, "batch_rows must be 1 or more"),
    ],
)
def test_bad_fields_are_refused(config, changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config, **changes)


ON_A_MESH = """
    import dataclasses, json, sys
    import jax, numpy as np
    from midjax.evals import generate, loss, needle
    from midjax.evals import run as evals
    from midjax.model import architecture, rope, sharding, transformer

    fields, model_fields, axes = map(json.loads, sys.argv[1:])
    long, samples, needles = (fields.pop(name) for name in ("long", "samples", "needle"))
    samples["prompts"] = tuple(samples["prompts"])
    lists = {name: tuple(needles[name]) for name in ("row_tokens", "depths")}
    config = evals.Eval(
        **fields | {"domains": tuple(fields["domains"]), "mesh": sharding.Mesh(**axes)},
        long=loss.LongDocuments(**long),
        samples=generate.Samples(**samples),
        needle=needle.Needles(**needles | lists),
    )
    scaling = rope.RopeScaling(kind="none")
    model = architecture.TransformerConfig(
        **model_fields | {
            "rope": rope.Rope(theta=10000.0, scaling=scaling),
            "layer_pattern": ("full",),
            "dense_layers": (),
        }
    )
    params = transformer.init(model, jax.random.key(0))
    mesh = sharding.make(config.mesh)
    placed = jax.device_put(params, sharding.tree(mesh, transformer.logical_axes(model), params))

    def refusal(**changes):
        try:
            evals.check(dataclasses.replace(config, **changes), model, mesh)
        except ValueError as error:
            return str(error)

    odd = dataclasses.replace(config.needle, batch_rows=3)
    uneven = dataclasses.replace(config.needle, row_tokens=(98,))
    out = {"refusals": {
        "batch": refusal(batch_rows=3, samples=None),
        "needle batch": refusal(needle=odd, samples=None),
        "needle row": refusal(needle=uneven, samples=None),
        "row": refusal(row_tokens=30, samples=None),
    }}
    out["plain"] = evals.run(config, model, params, 1)
    out["sharded"] = evals.run(config, model, placed, 1, mesh)
    print("RESULT" + json.dumps(out))
"""


def hidden_keys():
    """5 tokens a key, which do not divide over two shards."""
    return needle.Needles(
        source="code", row_tokens=(96, 128), depths=(0.0, 0.9), per_cell=2, digits=5,
        statement="The pass key is {key}. ", question="The pass key is ", batch_rows=4, seed=0,
    )  # fmt: skip


def on_mesh(config, **axes):
    """Results on one device and on a mesh, and what the mesh refuses."""
    samples = dataclasses.replace(config.samples, prompts=("def f", "Once", "x"))  # 3 rows over 2
    fields = dataclasses.asdict(dataclasses.replace(config, samples=samples, needle=hidden_keys()))
    given = [fields, dataclasses.asdict(model()), axes]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_A_MESH), *map(json.dumps, given)],
        env=devices.environment(math.prod(axes.values())), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.partition("RESULT")[2])


def assert_same_numbers(plain, sharded):
    for name in TEXTS:
        expected = plain["domains"][name]["bits_per_byte"]
        assert sharded["domains"][name]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    for a, b in zip(
        plain["by_position"]["buckets"], sharded["by_position"]["buckets"], strict=True
    ):
        assert b["nats_per_token"] == pytest.approx(a["nats_per_token"], rel=1e-5)
    assert len(plain["needle"]["cells"]) == 4
    for a, b in zip(plain["needle"]["cells"], sharded["needle"]["cells"], strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=5e-5)  # nats of about 5
        assert a["nats_per_token"] != pytest.approx(a["nats_without"], rel=1e-3)


def test_a_mesh_gives_the_same_numbers(config):
    """Parameters and rows over fsdp, rows and their length over context."""
    found = on_mesh(config, data=1, fsdp=2, tensor=1, context=2)
    plain, sharded = found["plain"], found["sharded"]
    assert_same_numbers(plain, sharded)
    assert sharded["samples"] == plain["samples"] and len(plain["samples"]) == 3
    refusals = found["refusals"]
    assert "does not divide over the mesh's 2 data shards" in refusals["batch"]
    assert "Needles.batch_rows=3 does not divide over the mesh's 2" in refusals["needle batch"]
    assert "A row of 30 tokens does not divide over mesh context 2" in refusals["row"]
    assert "A row of 98 tokens does not divide over mesh context 2" in refusals["needle row"]
