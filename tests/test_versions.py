import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def environment(folder, requirement):
    """A Python that borrows what this one has, PyTorch above all, but has what the requirement changes for itself.

    What is its own comes first. With it comes the version of its own transformers, None if the borrowed one does.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = str(Path(torch.__file__).parent.parent)
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({borrowed!r})\n")
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", requirement], check=True)
    versions = [path.name.split("-")[1].removesuffix(".dist") for path in site.glob("transformers-*.dist-info")]
    return python, *(versions or [None])


@pytest.mark.heavy
@pytest.mark.parametrize("end", ["lowest", "newest"])
def test_fast_tests_pass_with_both_ends_of_the_declared_range_of_transformers(tmp_path, end):
    python, version = environment(tmp_path / "environment", requirements()[end])
    if version is None:
        pytest.skip("pip found the transformers that runs these tests already")

    def run(*arguments):
        return subprocess.run([python, *arguments], cwd=ROOT, capture_output=True, text=True)

    of_the_checkout = [str(ROOT / name / "__init__.py") for name in ("mae_hf", "conversion")]
    assert run("-c", IMPORTED).stdout.splitlines() == [torch.__file__, *of_the_checkout, version]
    done = run("-m", "pytest", "-m", "not heavy", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
