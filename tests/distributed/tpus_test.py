# SPDX-License-Identifier: Apache-2.0
"""A run that is to compute on TPUs says in one line why it cannot."""

import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from midjax.distributed import tpus

ASKED = {"JAX_PLATFORMS": "tpu,cpu"}


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tpus.NoTpuError, match=r"pip install 'midjax\[tpu\]'"):
        tpus.check_library(ASKED)
    tpus.check_library({**ASKED, "TPU_LIBRARY_PATH": "/lib/libtpu.so"})
    tpus.check_library({"JAX_PLATFORMS": "cpu"})
    tpus.check_library({})


@pytest.mark.parametrize("found", [True, False])
def test_another_backend_is_not_computed_on(found):
    tpus.check_chips({"JAX_PLATFORMS": "cpu"})
    tpus.check_chips({})
    with pytest.raises(tpus.NoTpuError, match="computes on 'cpu'"):
        tpus.check_chips({} if found else ASKED, found=found)


def test_a_tpu_is_computed_on(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    tpus.check_chips(ASKED, found=True)


def test_train_without_a_tpu_ends_with_one_error(tmp_path):
    """Whether libtpu is there or not, this machine has no chip."""
    environment = {**os.environ, "JAX_PLATFORMS": "tpu", "TPU_SKIP_MDS_QUERY": "1"}
    line = ["train", "--gin_file=gin/recipes/demo_pretrain.gin", f"--gin.Train.run_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "midjax", *line],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = [one for one in done.stderr.splitlines() if one.startswith("midjax train: ")]
    assert len(said) == 1 and "set JAX_PLATFORMS=cpu" in said[0]
    assert not list(tmp_path.iterdir())
