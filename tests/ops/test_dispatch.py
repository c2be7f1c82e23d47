"""Which core runs, how the compiled one is made, and what happens where it cannot be."""

import logging
import subprocess
import sys

import pytest
import torch

from abmll import ops
from abmll.errors import UserError
from abmll.ops import build, compiled, dispatch
from abmll.ops.compiled import Compiled
from abmll.ops.tiled import Tiled

ROWS = torch.zeros(2, 4)


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process: nothing loaded yet."""
    for function in (dispatch._compiled, dispatch._fastest_on_cpu):
        function.cache_clear()
    monkeypatch.delenv("ABMLL_OPS", raising=False)
    yield monkeypatch
    for function in (dispatch._compiled, dispatch._fastest_on_cpu):
        function.cache_clear()


def test_the_fastest_by_device_and_dtype(fresh):
    assert isinstance(dispatch.core_for(ROWS, 2), Compiled)
    assert isinstance(dispatch.core_for(ROWS.double(), 2), Tiled)
    assert isinstance(dispatch.core_for(ROWS.to("meta"), 2), Tiled)


def test_one_can_be_forced_by_function_and_by_environment(fresh):
    with ops.use("tiled"):
        assert isinstance(dispatch.core_for(ROWS, 2), Tiled)
        with ops.use("compiled"):
            assert isinstance(dispatch.core_for(ROWS, 2), Compiled)
        assert isinstance(dispatch.core_for(ROWS, 2), Tiled)
    fresh.setenv("ABMLL_OPS", "tiled")
    assert isinstance(dispatch.core_for(ROWS, 2), Tiled)
    fresh.setenv("ABMLL_OPS", "quick")
    with pytest.raises(UserError, match="'quick'"):
        dispatch.core_for(ROWS, 2)
    with pytest.raises(UserError, match="'fast'"), ops.use("fast"):
        pass


def test_a_gpu_without_triton_has_plain_torch(fresh, caplog):
    dispatch._fastest_on_gpu.cache_clear()
    fresh.setitem(sys.modules, "abmll.ops.triton_core", None)  # importing it fails
    with caplog.at_level(logging.WARNING):
        assert isinstance(dispatch._fastest_on_gpu(torch.device("cpu")), Tiled)
    assert "Triton operation is not available" in caplog.text
    dispatch._fastest_on_gpu.cache_clear()


@pytest.mark.parametrize("broken", ["no compiler", "compiler fails", "no folder", "no home", "wrong results"])
def test_without_the_compiled_core_plain_torch_serves_and_the_log_says_so(broken, fresh, tmp_path, caplog, case):
    wanted = case().run(ops.Ask())
    dispatch._compiled.cache_clear()
    dispatch._fastest_on_cpu.cache_clear()
    fresh.setenv("ABMLL_CACHE", str(tmp_path))
    if broken == "no compiler":
        fresh.setenv("PATH", str(tmp_path))
        fresh.delenv("CXX", raising=False)
    elif broken == "compiler fails":
        fresh.setenv("CXX", "false")
    elif broken == "no folder":
        (tmp_path / "file").touch()
        fresh.setenv("ABMLL_CACHE", str(tmp_path / "file" / "folder"))
    elif broken == "no home":
        fresh.delenv("ABMLL_CACHE")
        fresh.delenv("XDG_CACHE_HOME", raising=False)
        fresh.setattr(build.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        source = tmp_path / "wrong.cpp"
        text = compiled.SOURCE.read_text(encoding="utf-8")
        assert text.count("0x846CA68Bu") == 1
        source.write_text(text.replace("0x846CA68Bu", "0x846CA68Du"), encoding="utf-8")
        fresh.setattr(compiled, "SOURCE", source)
    with caplog.at_level(logging.WARNING):
        assert isinstance(dispatch.core_for(ROWS, 2), Tiled)
        found = case().run(ops.Ask())
    assert sum("plain torch is used" in m for m in caplog.messages) == 1  # once, not at every layer
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="'compiled' cannot be had"), ops.use("compiled"):
        dispatch.core_for(ROWS, 2)


@pytest.mark.parametrize("rows", [ROWS.double(), ROWS.to("meta")], ids=["float64", "meta"])
def test_the_compiled_core_refuses_what_it_would_misread(rows, fresh):
    with pytest.raises(UserError, match="takes float32 on a CPU"), ops.use("compiled"):
        dispatch.core_for(rows, 2)


def test_two_processes_build_at_once_and_later_calls_find_it_made(tmp_path, monkeypatch):
    """This process and a child that loads build.py alone, which needs no torch."""
    code = (
        "import importlib.util, sys, pathlib\n"
        "spec = importlib.util.spec_from_file_location('build', sys.argv[1])\n"
        "build = importlib.util.module_from_spec(spec); spec.loader.exec_module(build)\n"
        "assert build.load(pathlib.Path(sys.argv[2])).abmll_forward; assert 'torch' not in sys.modules\n"
    )
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code, build.__file__, str(compiled.SOURCE)])
    assert build.load(compiled.SOURCE).abmll_forward
    assert child.wait(120) == 0
    (made,) = tmp_path.iterdir()  # one library, no leavings
    written = made.stat().st_mtime_ns
    assert build.load(compiled.SOURCE).abmll_forward
    assert made.stat().st_mtime_ns == written
