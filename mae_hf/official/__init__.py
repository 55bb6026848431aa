"""The calling convention of facebookresearch/mae: an old script changes one import line and keeps the rest.

`from mae_hf.official import models_mae, models_vit`, then `models_mae.__dict__[name](...)` as in main_pretrain.py and
`models_vit.__dict__[name](...)` as in main_finetune.py and main_linprobe.py.
"""

from . import models_mae, models_vit
from .models_mae import MaskedAutoencoder
from .models_vit import VisionTransformer
from .registry import create_model, list_models

__all__ = ["MaskedAutoencoder", "VisionTransformer", "create_model", "list_models", "models_mae", "models_vit"]
