# SPDX-License-Identifier: Apache-2.0
"""`midjax tokenize` against the tokenizer library's own batch call, in tokens per wall second.

The demo's texts, cut into documents of lognormal length (about 600 tokens on average) and repeated
to 60 MB, with a byte-level BPE of 32,000 tokens trained on them here. The peer is
`tokenizers.Tokenizer.encode_batch_fast` on the texts in memory, in batches of 1,000, its ids not
even looked at. Ours reads JSON lines, encodes, hashes and writes token folders: from eight files,
with the processes and threads that it chooses, started in the time; and from one compressed file,
which cannot be cut. Both use all processors; rounds alternate, and the best of each counts.

    python tests/bench/tokenize_speed.py

Prints `figure | ours | peer | ratio | target | met`, writes build/bench/tokenize.json, and exits
with 1 where a target is missed.
"""

import gzip
import json
import pathlib
import shutil
import sys
import time
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from midjax import demo_data
from midjax.batches import tokenize, vocabulary
from midjax.corpora import formats, text

FOLDER = pathlib.Path("build/bench/tokenize")
OUT = pathlib.Path("build/bench/tokenize.json")
TARGET = 0.9
ROUNDS = 3
FILES = 8
MEGABYTES = 60
PEER_BATCH = 1000


def documents() -> list[str]:
    """The texts, the same in every run."""
    whole = ""
    for name in ("prose", "code", "maths"):
        with gzip.open(demo_data.path(f"{name}.train.jsonl.gz"), "rt", encoding="utf-8") as file:
            whole += "\n\n".join(json.loads(line)["text"] for line in file)
    rng = np.random.default_rng(0)
    made, at, size = [], 0, 0
    while size < MEGABYTES * 1_000_000:
        length = 20 + int(min(rng.lognormal(7.3, 0.9), 60_000))
        if at + length > len(whole):
            at = int(rng.integers(2000))  # the next round is cut elsewhere
        made.append(whole[at : at + length])
        at, size = at + length, size + length
    return made


def tokenizer(texts: list[str]) -> str:
    """The folder of the tokenizer, trained once."""
    folder = FOLDER / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=32_000,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(texts[: len(texts) // 8], trainer)
        folder.mkdir(parents=True)
        made.save(str(folder / "tokenizer.json"))
    return str(folder)


def recipe(name: str, path: str, folder: str) -> tokenize.Tokenize:
    """Tokenizes `path` into FOLDER/name."""
    source = text.JsonLines(
        path=path, format=formats.Text(field="text"), id_field="id", max_bad_records=0
    )
    return tokenize.Tokenize(
        sources={"s": source},
        tokenizer=vocabulary.FastTokenizer(path=folder, bos_token="<s>", eos_token="</s>"),
        output=str(FOLDER / name),
        shard_tokens=100_000_000,
    )


def write(texts: list[str]) -> dict[str, str]:
    """The texts as eight plain files and as one compressed one; returns the paths."""
    lines = [json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)]
    for number in range(FILES):
        (FOLDER / f"plain-{number}.jsonl").write_text("".join(lines[number::FILES]))
    with gzip.open(FOLDER / "whole.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
        file.writelines(lines)
    return {"8 files": str(FOLDER / "plain-*.jsonl"), "1 file": str(FOLDER / "whole.jsonl.gz")}


def peer(texts: list[str], folder: str) -> float:
    """Seconds of the library."""
    made = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    begin = time.perf_counter()
    for at in range(0, len(texts), PEER_BATCH):
        made.encode_batch_fast(texts[at : at + PEER_BATCH], add_special_tokens=False)
    return time.perf_counter() - begin


def ours(config: tokenize.Tokenize) -> tuple[float, int]:
    """(seconds, tokens without BOS and EOS) of midjax."""
    shutil.rmtree(config.output, ignore_errors=True)
    begin = time.perf_counter()
    manifest = tokenize.run(config)["s"]
    return time.perf_counter() - begin, manifest["tokens"] - 2 * manifest["documents"]


def rows() -> list[dict[str, Any]]:
    """The figures, measured now."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = documents()
    folder = tokenizer(texts)
    configs = {name: recipe(name, path, folder) for name, path in write(texts).items()}
    best: dict[str, float] = {}
    tokens = 0
    for _ in range(ROUNDS):
        best["peer"] = min(best.get("peer", np.inf), peer(texts, folder))
        for name, config in configs.items():
            seconds, tokens = ours(config)
            best[name] = min(best.get(name, np.inf), seconds)
    return [
        {
            "figure": f"tokenize, tokens per second, from {name}",
            "value": round(tokens / best[name]),
            "peer": round(tokens / best["peer"]),
            "target": f">= {TARGET}x",
            "met": best["peer"] / best[name] >= TARGET,
        }
        for name in configs
    ]


def main() -> int:
    made = rows()
    print("figure | ours | peer | ratio | target | met")
    for row in made:
        ratio = f"{row['value'] / row['peer']:.3f}"
        print(row["figure"], row["value"], row["peer"], ratio, row["target"], row["met"], sep=" | ")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(made, indent=1))
    return 0 if all(row["met"] for row in made) else 1


if __name__ == "__main__":
    sys.exit(main())
