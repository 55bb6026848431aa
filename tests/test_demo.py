"""The demo: its checkpoint, its card and `make demo`."""

import re
import shutil

import pytest
from PIL import ImageChops

from mae_hf.checkpoint import read_checkpoint
from mae_hf.key_maps import official_to_native_names
from mae_hf.reconstruction import open_image
from tests.helpers import DEMO, ROOT, run_command, run_python


@pytest.fixture(scope="module")
def printed():
    """What the script prints about the checkpoint that ships with the repository."""
    return run_python(DEMO / "train.py", "--evaluate").stdout


def test_checkpoint_is_small_and_of_the_official_layout():
    assert (DEMO / "mae_demo.pth").stat().st_size <= 5_000_000
    checkpoint = read_checkpoint(DEMO / "mae_demo.pth")
    names = official_to_native_names(4, 4)
    assert list(checkpoint.state_dict) == [name for name in names if not name.startswith(("head", "fc_norm"))]
    assert checkpoint.fields["norm_pix_loss"] is False
    parameters = sum(value.numel() for value in checkpoint.state_dict.values())
    assert f"| parameters | {parameters:,} |" in (DEMO / "README.md").read_text()


def test_model_beats_filling_with_the_mean_by_thirty_percent(printed):
    errors = [float(number) for number in re.findall(r"(\d\.\d{4})", printed)]
    model, mean, _ = errors
    assert model <= 0.7 * mean


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo_draws_the_figure_of_the_readme_and_says_what_to_do_next():
    done = run_command("make", "demo")
    assert "The figure is demo/reconstruction.png" in done.stdout and "mae_visualize_vit_base.pth" in done.stdout
    drawn, shown = open_image(ROOT / "demo" / "reconstruction.png"), open_image(DEMO / "reconstruction.png")
    assert max(high for _, high in ImageChops.difference(drawn, shown).getextrema()) <= 2  # of 255, for rounding


def test_card_quotes_what_the_script_prints(printed):
    card = (DEMO / "README.md").read_text()
    for line in printed.splitlines()[1:]:
        name, error, change = re.match(r"  (.+?)\s+(\d\.\d{4})\s+([+-][\d.]+%)", line).groups()
        assert f"| {name} | {error} | {change} |" in card
