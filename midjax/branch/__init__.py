# SPDX-License-Identifier: Apache-2.0
"""Many decays of one trunk: a list of jobs, each an ordinary run of `train`.

    recipe    Branch, Job: a `Train` per job, built in the job's gin scope
    trunk     the trunk's checkpoints: which there are, whether each lies in a stable phase
    jobs      jobs + trunk -> recipes of `train`, every number known, all checked before one runs
    run       one after another: what is finished is kept, what failed is named at the end
    results   what run directories say of the jobs -> branches.json, the printed table

A job's folder is a run directory like any other: `midjax train --gin_file=FOLDER/config.gin` does
what `midjax branch` does there, bit for bit.
"""
