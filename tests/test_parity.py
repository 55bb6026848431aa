import pytest

from benchmarks.parity import measure
from mae_hf.conversion.cards import measurements

TOLERANCES = {"latent": 2e-5, "pred": 1e-5, "loss": 5e-6}
HEAVY = [pytest.param("large", marks=pytest.mark.heavy), pytest.param("huge", marks=pytest.mark.heavy)]


@pytest.mark.parametrize("preset", ["base", *HEAVY])
def test_figures_of_readme_and_cards_are_what_is_measured(tmp_path, preset):
    """`make cards` writes them again. Rounding differs between processors, so a difference is compared by its size."""
    quoted, measured = measurements()[preset], measure(preset, tmp_path)
    for name, tolerance in TOLERANCES.items():
        assert measured[name] <= tolerance
        ours, theirs = (max(found.pop(name), 5e-7) for found in (quoted, measured))
        assert theirs / 4 <= ours <= 4 * theirs
    assert abs(quoted.pop("memory_mb") - measured.pop("memory_mb")) <= 0.02 * measured["parameters"] * 4e-6
    assert quoted == measured
