"""benchmarks/parity.py: the measurements of README and cards are reproduced."""

import pytest

from benchmarks.parity import SIZES, measure
from scripts.size_cards import measurements

TOLERANCES = {"latent": 2e-5, "pred": 1e-5, "loss": 5e-6}
HEAVY = [pytest.param(size, marks=pytest.mark.heavy) for size in SIZES if size != "base"]


def test_every_size_with_golden_values_is_measured():
    assert [*measurements()] == SIZES


@pytest.mark.parametrize("size", ["base", *HEAVY])
def test_measurements_are_reproduced(tmp_path, size):
    """`make cards` updates them. Rounding differs between processors, so differences are compared by magnitude."""
    quoted, measured = measurements()[size], measure(size, tmp_path)
    for name, tolerance in TOLERANCES.items():
        assert measured[name] <= tolerance
        ours, theirs = (max(found.pop(name), 5e-7) for found in (quoted, measured))
        assert theirs / 4 <= ours <= 4 * theirs
    assert abs(quoted.pop("memory_mb") - measured.pop("memory_mb")) <= 0.02 * measured["parameters"] * 4e-6
    assert quoted == measured
