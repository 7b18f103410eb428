# SPDX-License-Identifier: Apache-2.0
"""`Document` -> sharded `Batch`.

Documents --tokenize--> token folder --pack, plans--> plan of rows --rows--> epochs without end
            (once)       (shards)    (pure function    (kept beside            (row number ->
                                      of the lengths)   the tokens)       pieces of documents)
                                                                                   |
                  Batch [B, T] <--assemble-- loader <-----------------------------/
                  (on the mesh)                 ^--- mixture order (index -> source, row number)
"""
