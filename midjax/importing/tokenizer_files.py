# SPDX-License-Identifier: Apache-2.0
"""The files of a Hugging Face tokenizer, as they are carried into a run directory."""

from midjax import files

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def read(folder: str) -> dict[str, bytes]:
    """Content by name of those that are there.

    Raises:
      FileNotFoundError: no tokenizer.json.
    """
    place = files.path(folder)
    found = {name: (place / name).read_bytes() for name in NAMES if (place / name).exists()}
    if "tokenizer.json" not in found:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer.json. Give the folder of a Hugging Face fast tokenizer."
        )
    return found
