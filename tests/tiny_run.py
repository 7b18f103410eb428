# SPDX-License-Identifier: Apache-2.0
"""A run small enough for tests: three token folders and a recipe, built in Python."""

import dataclasses
import pathlib

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from midjax import checkpoint
from midjax.batches import loader, shards, vocabulary
from midjax.mixture import stages as stages_lib
from midjax.model import architecture, rope, sharding
from midjax.train import evaluation, recipe, start, step
from midjax.train.optimizers import adamw as adamw_lib
from midjax.train.schedules import phases

VOCAB, T, B = 64, 16, 8


def write_tokens(folder: pathlib.Path, *, documents: int = 60, tokenizer: str = "tiny") -> None:
    """Three sources, each a noisy count with a stride of its own: learnable and distinct."""
    for k, name in enumerate(("code", "maths", "prose")):
        rng = np.random.default_rng(k)
        made = []
        for i in range(documents):
            length = int(rng.integers(2, 60))
            tokens = (int(rng.integers(VOCAB)) + (k + 1) * np.arange(length)) % (VOCAB - 2)
            noise = rng.random(length) < 0.1
            tokens = np.where(noise, rng.integers(0, VOCAB - 2, length), tokens)
            made.append((f"{name}-{i}", 3 * length, np.array([VOCAB - 2, *tokens, VOCAB - 1])))
        facts = {
            "source": name, "vocab_size": VOCAB, "tokenizer_hash": tokenizer,
            "bos_id": VOCAB - 2, "eos_id": VOCAB - 1,
        }  # fmt: skip
        shards.write(str(folder / name), made, facts=facts, shard_tokens=500)


def write_tokenizer(folder: pathlib.Path) -> str:
    """A tokenizer of `VOCAB` words; returns its hash, for `write_tokens`."""
    words = {f"w{i}": i for i in range(VOCAB)}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    opened = vocabulary.FastTokenizer(path=str(folder), bos_token=None, eos_token=None).open()
    return opened.facts["tokenizer_hash"]


def held_out(folder: pathlib.Path, **kwargs) -> evaluation.Evaluation:
    """An evaluation of what is in folder/tokens, by folder/tokenizer, inside of a run."""
    given = {
        "name": "held_out", "every_steps": 50, "tokens": str(folder / "tokens"),
        "domains": ("prose", "code"), "row_tokens": T, "batch_rows": 16,
        "tokenizer": str(folder / "tokenizer"),
    }  # fmt: skip
    return evaluation.Evaluation(**(given | kwargs))


def model(**kwargs) -> architecture.TransformerConfig:
    given = {
        "vocab_size": VOCAB, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4,
        "ffn_dim": 32, "norm_eps": 1e-5, "tied_head": False, "context_tokens": T,
        "rope": rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="none")),
        "initializer_std": 0.1, "param_dtype": "float32", "compute_dtype": "float32",
        "remat": "none", "loss_chunk_tokens": T,
    }  # fmt: skip
    return architecture.TransformerConfig(**(given | kwargs))


def adamw(**kwargs) -> adamw_lib.AdamW:
    given = {
        "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0,
        "mu_dtype": "float32", "nu_dtype": "float32",
    }  # fmt: skip
    return adamw_lib.AdamW(**(given | kwargs))


def wsd(**kwargs) -> phases.Schedule:
    given = {
        "peak_lr": 1e-2, "start_lr": 0.0, "final_lr": 0.0, "warmup_steps": 3,
        "warmup_tokens": None, "decay_steps": 0, "decay_tokens": None, "decay_shape": "linear",
    }  # fmt: skip
    return phases.Schedule(**(given | kwargs))


def begin(kind: str = "fresh", **kwargs) -> start.Start:
    given = {
        "run": None, "step": None, "huggingface": None, "keep": (), "reset": (),
        "allow_lr_jump": None,
    }  # fmt: skip
    return start.Start(kind=kind, **(given | kwargs))


def mixture(*stages: tuple[int, dict[str, float]], seed: int = 1, cap: float = 50.0):
    stages = stages or ((0, {"prose": 0.6, "code": 0.2, "maths": 0.2}),)
    names = {name for _, weights in stages for name in weights}
    return stages_lib.Mixture(
        stages=tuple(
            stages_lib.Stage(name=f"s{i}", start_tokens=tokens, weights=weights)
            for i, (tokens, weights) in enumerate(stages)
        ),
        max_epochs=dict.fromkeys(names, cap),
        seed=seed,
        block_rows=10,
    )


def data(tokens: pathlib.Path, mix: stages_lib.Mixture | None = None, **kwargs) -> loader.Data:
    mix = mix or mixture()
    given = {
        "sources": {
            name: loader.Source(tokens=str(tokens / name), packing="best_fit") for name in mix.names
        },
        "mixture": mix,
        "row_tokens": T,
        "batch_rows": B,
    }
    return loader.Data(**(given | kwargs))


def train(folder: pathlib.Path, name: str = "run", *, steps: int = 8, **kwargs) -> recipe.Train:
    """A recipe whose run directory is folder/name and whose tokens are in folder/tokens."""
    given = {
        "run_dir": str(folder / name),
        "model": model(),
        "data": data(folder / "tokens"),
        "optimizer": adamw(),
        "schedule": wsd(),
        "loss": step.Loss(z_loss_weight=1e-3),
        "start": begin(),
        "train_tokens": steps * T * B,
        "batch_lr_rule": "none",
        "microbatches": 1,
        "max_consecutive_skips": 3,
        "mesh": sharding.Mesh(data=1, fsdp=-1, tensor=1),
        "checkpoint": checkpoint.Keep(every_steps=4, last=9, forever_every_steps=None),
        "seed": 0,
    }
    return recipe.Train(**(given | kwargs))


def anneal(folder: pathlib.Path, name: str = "anneal", **kwargs) -> recipe.Train:
    """The anneal of folder/run: moments kept, the rate in force linearly to zero."""
    given = {
        "start": begin("anneal", run=str(folder / "run")),
        "schedule": wsd(peak_lr="checkpoint", warmup_steps=0, decay_steps=kwargs.get("steps", 8)),
    }
    return train(folder, name, **(given | kwargs))


replace = dataclasses.replace
