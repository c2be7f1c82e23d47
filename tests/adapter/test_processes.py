"""What only a fresh process can show: both import orders, loading a folder, and PEFT without abmll.

Three children, started together: importing torch and PEFT takes most of their time.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from abmll.adapter.export import export_lora
from abmll.adapter.modes import Sample, use

ABMLL_FIRST = """
import sys
import abmll
heavy = {"torch", "peft", "transformers"} & set(sys.modules)
assert not heavy, f"import abmll imports {heavy}"
import importlib.util
assert importlib.util.find_spec("peft").name == "peft"  # asking whether PEFT is installed does not use up the hook
from abmll import AbmllConfig  # the first import of PEFT, from within abmll
import peft
assert peft.PeftType("ABMLL") is peft.PeftType.ABMLL is AbmllConfig(r=2).peft_type
assert "ABMLL" in list(peft.PeftType) and repr(peft.PeftType.ABMLL) and f"{peft.PeftType.ABMLL.value}" == "ABMLL"
assert not {type(peft.__spec__.loader).__module__, type(peft.__loader__).__module__} & {"abmll.register"}
assert not [f for f in sys.meta_path if type(f).__module__ == "abmll.register"]
from abmll.adapter.modes import Sample, use
run(peft, lambda model: use(model, Sample(3)))
"""

PEFT_FIRST = """
import peft
before = list(peft.PeftType)
import abmll
assert [t for t in peft.PeftType if t not in before] == ["ABMLL"]
assert peft.PeftType("ABMLL") is peft.PeftType.ABMLL
config = peft.PeftConfig.from_pretrained(folder)
assert type(config) is abmll.AbmllConfig and config.latent == "output"
try:
    peft.PeftType("ABMML")
except ValueError:
    pass
else:
    raise AssertionError("an unknown type is accepted")
from abmll.adapter.modes import Sample, use
run(peft, lambda model: use(model, Sample(3)))
"""

WITHOUT_ABMLL = """
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "abmll":
            raise ModuleNotFoundError("No module named 'abmll'")
sys.meta_path.insert(0, NotInstalled())
import peft
assert "ABMLL" not in list(peft.PeftType)
run(peft, None)
assert not [name for name in sys.modules if name.partition(".")[0] == "abmll"]
"""

PREAMBLE = """
import sys
folder, base, inputs, outputs = sys.argv[1:]
def run(peft, sampling):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM
    ids = load_file(inputs)["ids"]
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        results = {"mean": model(input_ids=ids).logits}
        if sampling is not None:
            with sampling(model):
                results["draw"] = model(input_ids=ids).logits
    save_file(results, outputs)
"""

pytestmark = pytest.mark.slow

CHILDREN = {"abmll first": ABMLL_FIRST, "peft first": PEFT_FIRST, "without abmll": WITHOUT_ABMLL}
Finish = Callable[[str], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def expected(adapted, base_model) -> tuple[torch.nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(5))
    model = adapted("output")
    with torch.no_grad():
        mean = model(input_ids=ids).logits
        with use(model, Sample(3)):
            draw = model(input_ids=ids).logits
    return model, ids, {"mean": mean, "draw": draw}


@pytest.fixture(scope="module")
def finish(expected, base_model, tmp_path_factory) -> Finish:
    """Waits for a child by its name and gives back what it computed."""
    folder = tmp_path_factory.mktemp("processes")
    model, ids, _ = expected
    base_model().save_pretrained(folder / "base")
    model.save_pretrained(folder / "abmll")
    export_lora(model, folder / "lora")
    save_file({"ids": ids}, folder / "ids.safetensors")
    running: dict[str, tuple[subprocess.Popen[str], Path]] = {}
    for name, code in CHILDREN.items():
        output = folder / f"{name}.safetensors"
        adapter = folder / ("lora" if name == "without abmll" else "abmll")
        arguments = [str(path) for path in (adapter, folder / "base", folder / "ids.safetensors", output)]
        child = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running[name] = (child, output)

    def wait(name: str) -> dict[str, torch.Tensor]:
        child, output = running[name]
        text, _ = child.communicate(timeout=120)
        assert child.returncode == 0, text
        return load_file(output)

    yield wait
    for child, _ in running.values():
        if child.poll() is None:
            child.kill()
            child.wait()


@pytest.mark.parametrize("order", ["abmll first", "peft first"])
def test_a_fresh_process_knows_the_tuner_and_computes_the_same_bits(order, finish, expected):
    results, (_, _, wanted) = finish(order), expected
    assert torch.equal(results["mean"], wanted["mean"])
    assert torch.equal(results["draw"], wanted["draw"])
    assert not torch.equal(wanted["draw"], wanted["mean"])


def test_the_exported_lora_needs_no_abmll(finish, expected):
    results, (_, _, wanted) = finish("without abmll"), expected
    assert torch.equal(results["mean"], wanted["mean"])
