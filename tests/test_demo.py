import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ImageChops

from mae_hf.checkpoint import read_checkpoint
from mae_hf.key_maps import official_to_native_names
from mae_hf.reconstruction import open_image

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo"


@pytest.fixture(scope="module")
def printed():
    """What the script says of the checkpoint that ships."""
    command = [sys.executable, str(DEMO / "train.py"), "--evaluate"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_checkpoint_is_small_and_of_the_official_layout():
    assert (DEMO / "mae_demo.pth").stat().st_size <= 5_000_000
    checkpoint = read_checkpoint(DEMO / "mae_demo.pth")
    names = official_to_native_names(4, 4)
    assert list(checkpoint.state_dict) == [name for name in names if not name.startswith(("head", "fc_norm"))]
    assert checkpoint.args["norm_pix_loss"] is False
    parameters = sum(value.numel() for value in checkpoint.state_dict.values())
    assert f"| parameters | {parameters:,} |" in (DEMO / "README.md").read_text()


def test_model_beats_filling_with_the_mean_by_thirty_percent(printed):
    errors = [float(number) for number in re.findall(r"(\d\.\d{4})", printed)]
    model, mean, _ = errors
    assert model <= 0.7 * mean


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo_paints_the_picture_of_the_readme_and_says_what_to_do_next():
    done = subprocess.run(["make", "demo"], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "The picture is demo/reconstruction.png" in done.stdout and "mae_visualize_vit_base.pth" in done.stdout
    made, shown = open_image(ROOT / "demo" / "reconstruction.png"), open_image(DEMO / "reconstruction.png")
    assert max(high for _, high in ImageChops.difference(made, shown).getextrema()) <= 2  # of 255, for rounding


def test_card_quotes_what_the_script_prints(printed):
    card = (DEMO / "README.md").read_text()
    for line in printed.splitlines()[1:]:
        name, error, change = re.match(r"  (.+?)\s+(\d\.\d{4})\s+([+-][\d.]+%)", line).groups()
        assert f"| {name} | {error} | {change} |" in card
