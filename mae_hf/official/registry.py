"""Official model names: those of `models_mae` (`mae_vit_...`) and `models_vit` (`vit_...`), for every size."""

from collections.abc import Callable
from typing import Any

from ..configuration_mae import unknown_name
from .models_mae import MODELS as PRETRAINING_MODELS
from .models_mae import MaskedAutoencoder
from .models_vit import MODELS as CLASSIFIERS
from .models_vit import VisionTransformer

_MODELS: dict[str, Callable[..., MaskedAutoencoder | VisionTransformer]] = {**PRETRAINING_MODELS, **CLASSIFIERS}


def list_models() -> list[str]:
    """Return the names that `create_model` accepts."""
    return list(_MODELS)


def create_model(name: str, **overrides: Any) -> MaskedAutoencoder | VisionTransformer:
    """Make a model by its official name.

    Args:
        name: One of `list_models()`.
        **overrides: Arguments of `MaskedAutoencoder`, or of `VisionTransformer` for a classifier (`vit_...`).

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If the name is unknown (similar names are listed) or a value is invalid.
    """
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    return _MODELS[name](**overrides)
