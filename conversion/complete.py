"""Whether weights are all there and fit together."""

import torch

from mae_hf.checkpoint import CheckpointError
from mae_hf.configuration_mae import MAEConfig

from .kinds import ENCODER, MODEL_CLASSES
from .layouts import from_native
from .source import Source
from .tensors import first_few


def check_complete(source: Source, config: MAEConfig) -> None:
    """Raise `CheckpointError`, naming keys, unless the model of this config has just these keys and shapes."""
    with torch.device("meta"):
        wanted = MODEL_CLASSES[source.kind](config).state_dict()
    if source.kind == ENCODER:
        wanted = {f"mae.{key}": value for key, value in wanted.items()}
    wanted = from_native(source.layout, wanted)
    found = source.state_dict
    both = [key for key in wanted if key in found]
    problems = {
        "missing": [key for key in wanted if key not in found],
        "not known": [key for key in found if key not in wanted],
        "of a type that no weight has": [
            f"{key} {found[key].dtype}"
            for key in both
            if found[key].is_floating_point() != wanted[key].is_floating_point()
        ],
        "of a shape that contradicts the others": [
            f"{key} {tuple(found[key].shape)}, not {tuple(wanted[key].shape)}"
            for key in both
            if found[key].shape != wanted[key].shape
        ],
    }
    for what, keys in problems.items():
        if keys:
            raise CheckpointError(f"keys are {what} ({len(keys)}): {first_few(keys)}")
