# SPDX-License-Identifier: Apache-2.0
"""`Document` -> sharded `Batch`.

Documents --tokenize--> token folder --pack.plan--> Rows --mixture order--> loader --> Batch [B, T]
            (once)       (shards)     (pure function      (index -> source, row)   (on the mesh)
                                       of the lengths)
"""
