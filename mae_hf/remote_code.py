"""The code of the models in a saved folder, for `trust_remote_code=True` where this package is not installed."""

import shutil
from os import PathLike
from pathlib import Path

from transformers import PretrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

AUTO_MAP = {  # the file and class that each Auto class of transformers makes
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
    "AutoModelForImageClassification": "modeling_mae.MAEForImageClassification",
    "AutoBackbone": "modeling_mae.MAEBackbone",
}


def save_code(config: PretrainedConfig, folder: str | PathLike[str]) -> None:
    """Copy the code of the models to a folder, and name all of them in the `auto_map` of the configuration.

    This is for configurations that have an `auto_map`, or were registered for one (`register_for_auto_class`). Of
    models it copies nothing that were themselves loaded with `trust_remote_code=True`, or are classes made of ours:
    transformers copies the code of those.

    Args:
        config: Of the models, before it is saved.
        folder: Made if it is not there.
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
    """The files of a folder with code: `modeling_mae.py` and what it imports, directly or not."""
    modeling = Path(__file__).with_name("modeling_mae.py")
    if not modeling.exists():  # as after `trust_remote_code=True`: the configuration's files are kept apart
        return []
    return [modeling, *sorted({Path(name) for name in get_relative_import_files(modeling)})]
