"""Saving the code of the models with a folder, for `trust_remote_code=True` where this package is not installed."""

import shutil
from os import PathLike
from pathlib import Path

from transformers import PretrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

AUTO_MAP = {  # file and class that each Auto class of transformers loads
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
    "AutoModelForImageClassification": "modeling_mae.MAEForImageClassification",
    "AutoBackbone": "modeling_mae.MAEBackbone",
}


def save_code(config: PretrainedConfig, folder: str | PathLike[str]) -> None:
    """Copy the code of the models to a folder, and list all models in the `auto_map` of the configuration.

    This applies to configurations that have an `auto_map` or are registered for one (`register_for_auto_class`). Models
    that were loaded with `trust_remote_code=True` and custom subclasses are left to transformers, which copies their
    code itself.

    Args:
        config: Configuration of the models, before it is saved.
        folder: Folder to copy to; created if it does not exist.
    """
    auto_map = getattr(config, "auto_map", None) or {}
    own = f"{type(config).__module__.rpartition('.')[2]}.{type(config).__name__}"
    all_ours = {own, *auto_map.values()} <= set(AUTO_MAP.values())
    if not all_ours or not (auto_map or config._auto_class) or not (files := code_files()):
        return
    config.auto_map = {**AUTO_MAP, **auto_map}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, Path(folder) / file.name)


def code_files() -> list[Path]:
    """Return the files that a folder with code needs: `modeling_mae.py` and all its direct and indirect imports."""
    modeling = Path(__file__).with_name("modeling_mae.py")
    if not modeling.exists():  # loaded with `trust_remote_code=True`: the files of the configuration lie elsewhere
        return []
    return [modeling, *sorted({Path(name) for name in get_relative_import_files(modeling)})]
