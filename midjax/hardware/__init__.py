# SPDX-License-Identifier: Apache-2.0
"""Plain facts about Cloud TPU: chips, slices, and flags of its compiler. Imports no jax."""
