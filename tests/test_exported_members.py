import importlib
import pkgutil

import pytest

import mae_hf


def test_all_is_sorted_and_complete():
    constants = [name for name in mae_hf.__all__ if name.isupper()]
    classes = [name for name in mae_hf.__all__ if name[0].isupper() and not name.isupper()]
    others = [name for name in mae_hf.__all__ if name[0].islower()]
    assert mae_hf.__all__ == sorted(constants) + sorted(classes) + sorted(others)
    own = {name for name, value in vars(mae_hf).items() if getattr(value, "__module__", "").startswith("mae_hf.")}
    assert set(mae_hf.__all__) == own | {"DEFAULT_MASK_RATIO"}


def test_every_public_name_has_a_docstring():
    for name in mae_hf.__all__:
        member = getattr(mae_hf, name)
        assert not callable(member) or (member.__doc__ or "").strip(), name


@pytest.mark.parametrize("package", ["mae_hf", "mae_hf.official"])
def test_every_module_has_a_docstring(package):
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name not in ("conversion", "model_cards"):
            assert importlib.import_module(f"{package}.{module.name}").__doc__, module.name
