# SPDX-License-Identifier: Apache-2.0
"""One run on Cloud TPU: printed, checked, then asked for.

    Launch (spec) -> environment, worker script -> backends: vm, qr (gcloud), gke (JobSet, xpk)
                                                      |
                   exit codes, states of the queued resource -> watch -> delete, create again

Every command is a list of arguments; nothing passes through a local shell. What a worker runs is
the same `midjax train --gin_file=...` line as on a laptop.
"""
