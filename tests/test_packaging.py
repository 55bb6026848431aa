"""What the wheel and the source distribution hold, and that the wheel works by itself."""

import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from mae_hf.reconstruction import open_image
from tests.helpers import CHELSEA, DEMO, HEAD_OPTIONS, PROGRAMS, REFERENCE, ROOT, run_command, run_program, run_python


def copy_of_the_sources(folder):
    for name in ("mae_hf", "conversion", "model_cards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return str(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_sources(folder / "source")  # without the build folder of an earlier build
    run_python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel):
    """The `bin` of an empty environment into which only the wheel is installed, with its dependencies."""
    with tempfile.TemporaryDirectory() as folder:
        run_python("-m", "venv", folder)
        options = ["--quiet", "--constraint", ROOT / "constraints.txt"]
        run_python("-m", "pip", "install", *options, wheel, python=f"{folder}/bin/python")
        yield Path(folder) / "bin"


@pytest.mark.heavy
def test_wheel_holds_package_conversion_and_cards_and_runs(wheel, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mae_hf/py.typed", "mae_hf/conversion/convert.py", "mae_hf/model_cards/template.md"} <= names
    assert {"mae_hf/official/models_mae.py", "mae_hf/conversion/imagenet_labels.json"} <= names
    assert "mae_hf/model_cards/parity.json" not in names
    assert not any(name.startswith(("tests", "conversion", "examples", "scripts")) for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = ["-m", "mae_hf.cli", "convert", REFERENCE / "tiny" / "full.pth", tmp_path / "out", *HEAD_OPTIONS]
    run_python(*command, cwd=tmp_path, env=env)
    done = run_program("where", "mae_hf.conversion", cwd=tmp_path, env=env)
    assert str(tmp_path) in done.stdout


@pytest.mark.heavy
def test_installed_wheel_does_everything_outside_the_checkout(installed, tmp_path):
    def run(program, *arguments):
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = run_command(installed / program, *arguments, cwd=tmp_path, env=env)
        assert done.stderr == ""
        return done.stdout

    demo = DEMO / "mae_demo.pth"
    assert "read back and compared bit for bit" in run("mae-hf", "convert", demo, "mae", *HEAD_OPTIONS)
    assert "pretraining model, encoder and decoder" in run("mae-hf", "inspect", "mae")
    assert "nothing missing, nothing extra" in run("mae-hf", "verify", demo, "mae")
    run("mae-hf", "reconstruct", CHELSEA, "--model", "mae", "--output", "out.png")
    assert open_image(tmp_path / "out.png").width > 4 * 128
    assert "ViTMAEForPreTraining" in run("mae-hf", "convert", demo, "vit_mae", "--to", "vit_mae", *HEAD_OPTIONS)
    assert "nothing missing, nothing extra" in run("mae-hf", "verify", demo, "vit_mae")
    out = run("mae-hf", "convert", REFERENCE / "tiny" / "finetuned.pth", "classifier", *HEAD_OPTIONS[:2])
    assert "MAEForImageClassification" in out
    where, count = run("python", PROGRAMS / "imagenet_labels.py").split()
    assert where.startswith(str(installed.parent)) and count == "1000"


@pytest.mark.heavy
def test_source_distribution_leaves_data_out(tmp_path):
    source = copy_of_the_sources(tmp_path / "source")
    for name in ("tests/data", "examples/demo"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name)
    run_program("build_sdist", tmp_path, cwd=source)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    assert any(name.endswith("conversion/convert.py") for name in names)
    assert any(name.endswith("model_cards/template.md") for name in names)
    assert not any("tests/data" in name or name.endswith("mae_demo.pth") for name in names)
