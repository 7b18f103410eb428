# SPDX-License-Identifier: Apache-2.0
"""A long forward pass under every rotary embedding that transformers has a name for.

Documents of 100 tokens, of just the original length, one more, and six times as many, packed into
one row: the logits of each are those of transformers on that document alone.
"""

import parity
import pytest

from midjax.model import hf

ORIGINAL = 200
LENGTHS = (100, ORIGINAL, ORIGINAL + 1, 6 * ORIGINAL)
ROPES = {
    "linear": {"factor": 8.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": ORIGINAL},
    "yarn, not truncated": {
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {
        "factor": 8.0,
        "short_factor": [1.0 + 0.05 * i for i in range(8)],
        "long_factor": [1.5 + 0.9 * i for i in range(8)],
        "original_max_position_embeddings": ORIGINAL,
    },
}


@pytest.mark.parametrize("name", sorted(ROPES))
def test_logits_of_long_documents(name, tmp_path):
    kind = name.split(",")[0]
    # Dynamic scaling takes the original length from the model's own.
    longest = ORIGINAL if kind == "dynamic" else 8 * ORIGINAL
    model = parity.torch_model(
        "llama",
        head_dim=16,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **ROPES[name]},
    )
    model.save_pretrained(str(tmp_path))
    config, params = hf.load(str(tmp_path))
    texts = parity.documents(config.vocab_size, LENGTHS)
    # A fresh module for each document: dynamic scaling remembers the longest that it saw.
    found = parity.our_logits(config, params, texts, row_tokens=sum(LENGTHS) + 3)
    for text, ours in zip(texts, found, strict=True):
        parity.assert_close(ours, parity.torch_logits(fresh(tmp_path), text))


def fresh(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="eager"
    )
