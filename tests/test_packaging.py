import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def copy_of_the_sources(folder):
    for name in ("mae_hf", "conversion", "model_cards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return str(folder)


@pytest.mark.heavy
def test_wheel_holds_package_conversion_and_cards_and_runs(tmp_path):
    source = copy_of_the_sources(tmp_path / "source")  # no build folder of an earlier time
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), source]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mae_hf/py.typed", "mae_hf/conversion/convert.py", "mae_hf/model_cards/template.md"} <= names
    assert not any(name.startswith(("tests", "conversion", "examples")) for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    source = ROOT / "tests" / "data" / "reference" / "tiny" / "full.pth"
    command = [sys.executable, "-m", "mae_hf.cli", "convert", str(source), str(tmp_path / "out")]
    command += ["--num-attention-heads", "4", "--decoder-num-attention-heads", "4"]
    done = subprocess.run(command, cwd=tmp_path / "site", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import mae_hf.conversion; print(mae_hf.conversion.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True).stdout
    assert str(tmp_path) in where


@pytest.mark.heavy
def test_source_distribution_leaves_data_out(tmp_path):
    source = copy_of_the_sources(tmp_path / "source")
    for name in ("tests/data", "examples/demo"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name)
    code = f"import setuptools.build_meta as backend; backend.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    assert any(name.endswith("conversion/convert.py") for name in names)
    assert any(name.endswith("model_cards/template.md") for name in names)
    assert not any("tests/data" in name or name.endswith("mae_demo.pth") for name in names)
