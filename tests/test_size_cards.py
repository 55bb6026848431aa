"""scripts/size_cards.py: the cards of the sizes and the README's table show the last measurements."""

import pytest
from huggingface_hub import ModelCard

from mae_hf.conversion.cards import CARDS
from scripts.size_cards import _ROWS, measurements, size_card, size_table, with_table, write_cards
from tests.helpers import ROOT


@pytest.mark.parametrize("size", measurements())
def test_card_of_a_size_is_current(size):
    """`python -m scripts.size_cards` updates it."""
    assert str(ModelCard.load(CARDS / f"mae-vit-{size}.md")) == str(size_card(size))


def test_only_measured_sizes_have_cards():
    assert {path.stem for path in CARDS.glob("mae-vit-*.md")} == {f"mae-vit-{size}" for size in measurements()}


def test_table_of_the_readme_is_current():
    readme = (ROOT / "README.md").read_text()
    assert size_table(measurements()) in readme and with_table(readme) == readme


def test_table_shows_small_differences_and_large_counts():
    column = dict.fromkeys(_ROWS.values(), "x")
    table = size_table({"base": column | {"parameters": 111907840, "latent": 3.62e-06, "loss": 0.0, "memory_mb": 455}})
    assert table.splitlines()[0] == "| | base |"
    for cell in ("111,907,840", "3.6e-06", "0", "455"):
        assert f" | {cell} |" in table


def test_only_the_table_of_a_readme_is_replaced():
    readme = "before\n<!-- sizes -->\nold\n<!-- /sizes -->\nafter\n"
    expected = f"before\n<!-- sizes -->\n{size_table(measurements())}\n<!-- /sizes -->\nafter\n"
    assert with_table(readme) == expected == with_table(expected)


def test_cards_and_readme_are_written(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- sizes -->\nold\n<!-- /sizes -->\n")
    write_cards(tmp_path, readme)
    assert size_table(measurements()) in readme.read_text()
    for size in measurements():
        assert (tmp_path / f"mae-vit-{size}.md").read_bytes() == (CARDS / f"mae-vit-{size}.md").read_bytes()


def test_card_states_use_and_limits():
    text = size_card("large").text
    assert "# MAE ViT-Large" in text and "ViT-Large/16" in text
    assert "mae-hf convert mae_visualize_vit_large.pth ./mae-vit-large" in text
    assert "`mae_pretrain_vit_large.pth` neither reconstructs" in text and "has no head" in text
