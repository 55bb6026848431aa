"""Both ends of the range of transformers that the package declares."""

import re

import pytest
import torch

from tests.helpers import ROOT, run_program, run_python
from tests.helpers.borrowed_environment import borrowed_environment

# Besides the fast tests. docs/versions.md lists which features of PEFT and accelerate need a newer transformers.
HEAVY = ["attention", "compile", "export_onnx"]


def requirements():
    """Both ends of the range of transformers in pyproject.toml, as requirements for pip."""
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

    found = run_program("where", "torch", "mae_hf", "mae_hf.conversion", "transformers", python=python).stdout
    expected = [torch.__file__, *(str(ROOT / name / "__init__.py") for name in ("mae_hf", "conversion"))]
    files, versions = zip(*(line.split() for line in found.splitlines()), strict=True)
    assert list(files[:3]) == expected and versions[3] == version
    for chosen in (["not heavy"], ["heavy", *(f"tests/test_{name}.py" for name in HEAVY)]):
        run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", *chosen, python=python)
