# SPDX-License-Identifier: Apache-2.0
"""One module per model family: how its Hugging Face names, shapes and config keys map to ours."""
