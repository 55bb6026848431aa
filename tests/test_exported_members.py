import importlib
import pkgutil
import re
from pathlib import Path

import mae_hf

PACKAGE = Path(mae_hf.__file__).parent


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


def test_every_module_says_what_it_is_for():
    for module in pkgutil.iter_modules([str(PACKAGE)]):
        if module.name not in ("conversion", "model_cards"):
            assert importlib.import_module(f"mae_hf.{module.name}").__doc__, module.name


def test_modules_of_the_model_import_each_other_relatively_and_flat():
    """Only so does transformers copy all of them into a folder that is saved with its code."""
    for path in set(PACKAGE.glob("*.py")) - {PACKAGE / "cli.py"}:
        imports = re.findall(r"^[ \t]*(?:from|import) (?:mae_hf|\.)\S*.*$", path.read_text(), flags=re.MULTILINE)
        assert all(re.match(r"[ \t]*from \.\w+ import ", line) for line in imports), path
