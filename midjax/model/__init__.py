# SPDX-License-Identifier: Apache-2.0
"""The model, as pure functions of a frozen config and a plain dict of parameters.

    TransformerConfig --transformer.init--> params --sharding.tree--> the same, on a mesh

    tokens, segments, positions [B, T]
        |
    transformer.hidden  <-- rope.angles, attention.blocked
        |
    [B, T, D] --loss.token_losses--> nats and log Z per token [B, T]
        |-----loss.objective-------> the same, and their weighted sum, which has a gradient
        +------transformer.logits--> scores [B, T, V]

    Hugging Face folder <--hf.save-- (config, params) <--hf.load-- Hugging Face folder
                        names and shapes: families/

Only this package knows that flax.nnx exists.
"""
