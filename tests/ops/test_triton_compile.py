"""The Triton kernels compile for GPUs that this machine does not have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the extra `triton` (1 GB) is not installed: make test-triton")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_the_kernels_compile_for_gpus_that_are_not_here(target, tmp_path):
    """The whole way from the core's arguments to machine code, without a launch, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_triton.py")
    done = subprocess.run([sys.executable, script, target], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["hsaco" if target.startswith("gfx") else "cubin"] * 3
