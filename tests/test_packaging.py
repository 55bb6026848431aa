import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from mae_hf.reconstruction import open_image

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo"
TINY = ROOT / "tests" / "data" / "reference" / "tiny"
HEADS = ["--num-attention-heads", "4", "--decoder-num-attention-heads", "4"]


def copy_of_the_sources(folder):
    for name in ("mae_hf", "conversion", "model_cards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return str(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_sources(folder / "source")  # no build folder of an earlier time
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), source]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel):
    """Programs of an empty environment into which the wheel alone is installed, with what pip fetches for it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        options = ["--quiet", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([f"{folder}/bin/python", "-m", "pip", "install", *options, str(wheel)], check=True)
        yield Path(folder) / "bin"


@pytest.mark.heavy
def test_wheel_holds_package_conversion_and_cards_and_runs(wheel, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mae_hf/py.typed", "mae_hf/conversion/convert.py", "mae_hf/model_cards/template.md"} <= names
    assert "mae_hf/conversion/imagenet_labels.json" in names
    assert not any(name.startswith(("tests", "conversion", "examples")) for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", "mae_hf.cli", "convert", str(TINY / "full.pth"), str(tmp_path / "out"), *HEADS]
    done = subprocess.run(command, cwd=tmp_path / "site", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import mae_hf.conversion; print(mae_hf.conversion.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True).stdout
    assert str(tmp_path) in where


@pytest.mark.heavy
def test_installed_wheel_does_everything_outside_the_checkout(installed, tmp_path):
    def run(program, *arguments):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(installed / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    demo = DEMO / "mae_demo.pth"
    assert "read back and compared bit for bit" in run("mae-hf", "convert", demo, "mae", *HEADS)
    assert "pretraining model, encoder and decoder" in run("mae-hf", "inspect", "mae")
    assert "nothing missing, nothing extra" in run("mae-hf", "verify", demo, "mae")
    run("mae-hf", "reconstruct", DEMO / "chelsea.png", "--model", "mae", "--output", "out.png")
    assert open_image(tmp_path / "out.png").width > 4 * 128
    assert "ViTMAEForPreTraining" in run("mae-hf", "convert", demo, "vit_mae", "--to", "vit_mae", *HEADS)
    assert "nothing missing, nothing extra" in run("mae-hf", "verify", demo, "vit_mae")
    out = run("mae-hf", "convert", TINY / "finetuned.pth", "classifier", *HEADS[:2])
    assert "MAEForImageClassification" in out
    code = "import mae_hf.conversion.labels as labels; print(labels.__file__, len(labels.imagenet_labels()))"
    where, count = run("python", "-c", code).split()
    assert where.startswith(str(installed.parent)) and count == "1000"


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
