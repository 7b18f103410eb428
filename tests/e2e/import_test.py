# SPDX-License-Identifier: Apache-2.0
"""Foreign checkpoints through the verbs: import, tokenize, train, eval, export."""

import json
import pathlib

import imported
import jax
import pytest
import stories
import tiny_run as tiny
import tokenizers

from midjax import __main__ as cli
from midjax import checkpoint, config, export, files, lineage
from midjax.evals import run as evals
from midjax.importing import huggingface
from midjax.model import hf, transformer


def verb(folder: pathlib.Path, name: str, root, *more: str) -> int:
    """Saves a recipe and runs it as `midjax NAME --gin_file=...` would."""
    saved = folder / "recipes" / name
    config.save(root, saved)
    return cli.main([name, f"--gin_file={saved / 'config.gin'}", *more])


def rows(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_a_maxtext_checkpoint_is_annealed_with_its_moments(tmp_path, capsys):
    tiny.write_tokens(tmp_path / "tokens")
    source = imported.maxtext_source()
    assert (
        verb(tmp_path, "import", imported.importing(tmp_path / "in", source, imported.model())) == 0
    )
    assert "Adam's moments after 17 updates" in capsys.readouterr().out
    recipe = tiny.train(
        tmp_path, "anneal", steps=6, model=imported.model(),
        optimizer=tiny.adamw(decay_rules={".*": 1.0}),
        start=tiny.begin("anneal", run=str(tmp_path / "in")),
        schedule=tiny.wsd(peak_lr="checkpoint", warmup_steps=0, decay_steps=6),
    )  # fmt: skip
    jump = ["--gin.Schedule.peak_lr=5e-3"]
    assert verb(tmp_path, "train", recipe, *jump) == 2
    assert "Learning rate jump" in capsys.readouterr().err and not (tmp_path / "anneal").exists()

    assert verb(tmp_path, "train", recipe) == 0
    said = capsys.readouterr().out
    assert "start: anneal from" in said and "moments keep  adam_count keep" in said
    manifest = checkpoint.read_facts(str(tmp_path / "anneal"), 6)["manifest"]
    assert (manifest["adam_count"], manifest["schedule_count"]) == (17 + 6, 6)
    first = rows(tmp_path / "anneal")[0]
    assert first["lr"] == pytest.approx(1e-3)
    ancestors = lineage.of(str(tmp_path / "anneal"), 6)
    assert ancestors[0]["imported from"]["path"] == source.path
    assert [stage.get("run") for stage in ancestors[1:]] == [
        str(tmp_path / "in"), str(tmp_path / "anneal"),
    ]  # fmt: skip

    again = tiny.replace(recipe, run_dir=str(tmp_path / "in"))
    assert verb(tmp_path, "train", again) == 2
    assert "was written by `midjax import`, not by `midjax train`" in capsys.readouterr().err


def test_stories260k_is_trained_evaluated_and_exported(tmp_path, capsys):
    run_dir, tokenizer = tmp_path / "in", str(tmp_path / "in" / "tokenizer")
    source = imported.stories_source()
    assert verb(tmp_path, "import", imported.importing(run_dir, source)) == 0
    assert verb(tmp_path, "tokenize", stories.tokenizing(tmp_path, {"stories": slice(60)})) == 0
    data = stories.data(tmp_path, "stories", batch_rows=8)
    model = source.open(None).model

    recipe = tiny.train(
        tmp_path, "train", model=model, data=data, train_tokens=24 * 8 * 256,
        optimizer=tiny.adamw(b2=0.99, weight_decay=0.01),
        start=tiny.begin("anneal", run=str(run_dir)),
        schedule=tiny.wsd(peak_lr=5e-4, warmup_steps=5, decay_steps=12),
    )  # fmt: skip
    assert verb(tmp_path, "train", recipe) == 2
    assert "holds no moments of Adam" in capsys.readouterr().err
    recipe = tiny.replace(recipe, start=tiny.begin("weights", run=str(run_dir)))
    assert verb(tmp_path, "train", recipe) == 0
    losses = [row["loss"] for row in rows(tmp_path / "train")]
    assert len(losses) == 24
    first, last = sum(losses[:6]) / 6, sum(losses[-6:]) / 6
    assert 1.2 < first < 1.6 and last < first - 0.05

    bits = {}
    for name, run in (("before", run_dir), ("after", tmp_path / "train")):
        root = evals.Eval(
            name="stories", run=str(run), step=None, tokens=str(tmp_path / "tokens"),
            domains=("stories",), row_tokens=256, batch_rows=8, long=None, samples=None,
            tokenizer=tokenizer, mesh=imported.MESH,
        )  # fmt: skip
        assert verb(tmp_path, "eval", root) == 0
        found = json.loads((run / "eval" / "stories.json").read_text())
        bits[name] = found["domains"]["stories"]["bits_per_byte"]
    assert bits["after"] < bits["before"]

    root = export.Export(
        run=str(run_dir), step=None, output=str(tmp_path / "hf"), tokenizer=tokenizer,
        dtype="float32", mesh=imported.MESH,
    )  # fmt: skip
    assert verb(tmp_path, "export", root) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "imported from" in card and "stories260K.bin" in card


def test_a_maxtext_checkpoint_is_exported_with_its_scale_folded_in(tmp_path, capsys):
    """A Hugging Face Llama scales scores; this model does not, and computes the same there."""
    tokenizer = tmp_path / "tokenizer"
    stories_run = imported.importing(tmp_path / "stories", imported.stories_source())
    assert verb(tmp_path, "import", stories_run) == 0
    # Any tokenizer of no more than 128 tokens would do; this one is cut to its bytes.
    whole = json.loads((tmp_path / "stories" / "tokenizer" / "tokenizer.json").read_text())
    kept = {token: i for token, i in whole["model"]["vocab"].items() if i < 128}
    whole["model"] |= {"vocab": kept, "merges": [], "byte_fallback": False}
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(json.dumps(whole))
    settings = (tmp_path / "stories" / "tokenizer" / "tokenizer_config.json").read_text()
    (tokenizer / "tokenizer_config.json").write_text(settings)
    source = imported.maxtext_source()
    root = imported.importing(tmp_path / "in", source, imported.model(), tokenizer=str(tokenizer))
    assert verb(tmp_path, "import", root) == 0
    root = export.Export(
        run=str(tmp_path / "in"), step=None, output=str(tmp_path / "hf"),
        tokenizer=str(tmp_path / "in" / "tokenizer"), dtype="float32", mesh=imported.MESH,
    )  # fmt: skip
    assert verb(tmp_path, "export", root) == 0
    assert "logits within" in capsys.readouterr().out
    assert "attention_scale" not in (tmp_path / "hf" / "config.json").read_text()


def folder_of_others(place: pathlib.Path) -> str:
    """A small model with a tokenizer of words, three tokens that end, and settings of its own."""
    params = transformer.init(tiny.model(), jax.random.key(0))
    ids = {"bos_token_id": 62, "eos_token_id": [63, 3, 5], "pad_token_id": 7}
    hf.save(str(place), tiny.model(), params, "float32", ids=ids)
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(place / "tokenizer.json"))
    settings = {"bos_token": "w62", "eos_token": "w63"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    said = ids | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (place / "generation_config.json").write_text(json.dumps(said, indent=2))
    return str(place)


def test_settings_for_generation_go_from_import_through_training_to_export(tmp_path):
    source = folder_of_others(tmp_path / "theirs")
    tiny.write_tokens(tmp_path / "tokens", tokenizer=files.sha256_of(source + "/tokenizer.json"))

    def bring(place: str, name: str) -> None:
        root = imported.importing(tmp_path / name, huggingface.HuggingFace(path=place))
        assert verb(tmp_path, "import", root) == 0

    def take(run: str, name: str) -> pathlib.Path:
        root = export.Export(
            run=str(tmp_path / run), step=None, output=str(tmp_path / name),
            tokenizer=str(tmp_path / "in" / "tokenizer"), dtype="float32", mesh=imported.MESH,
        )  # fmt: skip
        assert verb(tmp_path, "export", root) == 0
        return tmp_path / name

    bring(source, "in")
    start = tiny.begin("weights", run=str(tmp_path / "in"))
    assert verb(tmp_path, "train", tiny.train(tmp_path, "run", steps=3, start=start)) == 0
    first = take("run", "first")
    bring(str(first), "again")
    second = take("again", "second")
    settings = (tmp_path / "theirs" / "generation_config.json").read_bytes()
    assert (first / "generation_config.json").read_bytes() == settings
    ids = json.loads((first / "config.json").read_text())
    assert (ids["eos_token_id"], ids["pad_token_id"]) == ([63, 3, 5], 7)
    result = json.loads((first / "export.json").read_text())
    assert result["token_ids_from"] == str(tmp_path / "run" / "source")
    for name in ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
