"""examples/small_runs.py: its results and its figures."""

import pytest
from PIL import Image

pytestmark = pytest.mark.heavy  # minutes; accelerate, datasets, matplotlib, scikit-learn and scikit-image


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def size_of(path):
    with Image.open(path) as opened:
        return opened.size


def test_pretrained_digits_are_classified_better_than_by_a_linear_model_on_pixels(tmp_path, capsys):
    from evaluate import main
    from small_runs import digits

    found = digits(tmp_path / "runs", tmp_path)
    linear = found["top-1 on digits, logistic regression on pixels"]
    assert 94 < linear < 97
    assert found["top-1 on digits, fine-tuned"] > linear + 2
    assert found["top-1 on digits, linear probe"] > 80  # chance is 10
    assert size_of(tmp_path / "digits.png") > (500, 300)
    assert main([str(tmp_path / "runs" / "digits-finetuned"), str(tmp_path / "runs" / "digits" / "test")]) == 0
    assert f"top-1 {found['top-1 on digits, fine-tuned']:.3f} %" in capsys.readouterr().out


def test_pretraining_on_photographs_lowers_the_loss_on_a_held_out_one_too(tmp_path):
    from small_runs import photographs

    first, last, held_out_first, held_out_last = photographs(tmp_path / "runs", tmp_path, epochs=60).values()
    assert last < 0.8 * first and held_out_last < 0.8 * held_out_first
    assert size_of(tmp_path / "photographs.png") > (500, 300)
    width, height = size_of(tmp_path / "reconstruction.png")
    assert height > width / 2  # three rows of four images
