"""Both ends of the range of transformers that the package declares."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from tests.borrowed_environment import borrowed_environment

HEAVY = (
    "attention",
    "compile",
    "export_onnx",
)  # besides the fast tests; what fails of PEFT and accelerate, README says
ROOT = Path(__file__).resolve().parent.parent
IMPORTED = """
import mae_hf, mae_hf.conversion, torch, transformers
for module in (torch, mae_hf, mae_hf.conversion):
    print(module.__file__)
print(transformers.__version__)
"""


def requirements():
    """Both ends of the range of transformers that pyproject.toml declares, as pip takes them."""
    ((lowest, limit),) = re.findall(r'"transformers>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    return {"lowest": f"transformers=={lowest}", "newest": f"transformers>={lowest},<{limit}"}


@pytest.mark.heavy
@pytest.mark.parametrize("end", ["lowest", "newest"])
def test_tests_pass_with_both_ends_of_the_declared_range_of_transformers(tmp_path, end):
    python, site = borrowed_environment(tmp_path / "environment", requirements()[end])
    own = list(site.glob("transformers-*.dist-info"))
    if not own:
        pytest.skip("pip found the transformers that runs these tests already")
    version = own[0].name.split("-")[1].removesuffix(".dist")

    def run(*arguments):
        return subprocess.run([python, *arguments], cwd=ROOT, capture_output=True, text=True)

    of_the_checkout = [str(ROOT / name / "__init__.py") for name in ("mae_hf", "conversion")]
    assert run("-c", IMPORTED).stdout.splitlines() == [torch.__file__, *of_the_checkout, version]
    for chosen in (["not heavy"], ["heavy", *(f"tests/test_{name}.py" for name in HEAVY)]):
        done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", *chosen)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
