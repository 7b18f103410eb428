# SPDX-License-Identifier: Apache-2.0
"""What a step costs on TPUs that nobody has rented: the TPU's compiler is asked, on any machine.

    recipe, slice --program--> lowered step   (compiler: in another process, worker; kept in cache)
    run: every stage on every slice           search: the settings of grid, in the order of rough
    analysis, predict: what a step promises   table, midjax/report/plan_page.py: for people

    lowered step --dump.compile--> executable (sizes)          text of the scheduled program
                                       |                          |               |
                                       |                     hlo.parse        buffers.parse
                                       |                          |               |
    slice, mesh --groups--> axes of collectives --> cost.estimate |               |
                 (flops: products and kernels;      (seconds)     +--> memory.analyse (bytes)
                  links: collectives;
                  trips: loops)

Nothing here is measured: the compiler's own estimate of cycles, and a model of what it has none
for. Nothing knows whose program it reads: every system's step is judged alike.
"""
