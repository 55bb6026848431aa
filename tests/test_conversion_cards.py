from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from mae_hf import MAEConfig
from mae_hf.configuration_mae import PRESETS
from mae_hf.conversion.cards import CARDS, Source, folder_card, measurements, size_card, size_table, with_table
from mae_hf.conversion.catalogue import RELEASES

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("preset", PRESETS)
def test_cards_of_the_sizes_are_current(preset):
    """`make cards` writes them again."""
    assert str(ModelCard.load(CARDS / f"mae-vit-{preset}.md")) == str(size_card(preset))


def test_table_of_the_readme_is_current():
    readme = (ROOT / "README.md").read_text()
    assert size_table(measurements()) in readme and with_table(readme) == readme


def source(**changes):
    facts = {"name": "a.pth", "md5": "0" * 32, "kind": "pretraining", "release": None, "license": None}
    return Source(**{**facts, "norm_pix_loss_from": "the option", "checksummed": True, "dtype": None, **changes})


def test_licence_is_that_of_the_release_or_the_given_one_or_other():
    config = MAEConfig(norm_pix_loss=True)
    released = folder_card(config, source(release=RELEASES[3], license="mit"), 1)
    assert released.data.license == "cc-by-nc-4.0" and released.data.datasets == ["imagenet-1k"]
    assert folder_card(config, source(license="mit"), 1).data.license == "mit"
    other = folder_card(config, source(), 1)
    assert other.data.license == "other" and other.data.datasets is None


def test_card_says_what_the_weights_cannot_do():
    config = MAEConfig(norm_pix_loss=True)
    encoder = folder_card(config, source(kind="encoder"), 1).text
    assert "nothing: it has no decoder" in encoder and "raw pixels (`norm" not in encoder
    assert "it is an encoder without a decoder" in encoder and "MAEModel.from_pretrained" in encoder
    normalised = folder_card(config, source(), 1).text
    assert "without their brightness and contrast" in normalised and "normalised pixels" in normalised
    assert "damage cannot be noticed" in folder_card(config, source(checksummed=False), 1).text


def test_card_of_a_cast_folder_does_not_promise_that_verify_passes():
    config = MAEConfig()
    assert "compared bit for bit" in folder_card(config, source(), 1).text
    cast = folder_card(config, source(dtype=torch.bfloat16), 1).text
    assert "cast to torch.bfloat16" in cast and "compared bit for bit" not in cast
