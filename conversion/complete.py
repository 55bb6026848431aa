"""Whether weights are all there and fit together."""

import torch
from torch import Tensor

from mae_hf.checkpoint import CheckpointError, first_line
from mae_hf.configuration_mae import MAEConfig

from .kinds import ENCODER, MODEL_CLASSES
from .layouts import from_native, to_native
from .source import Source
from .tensors import first_few

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def complete_weights(source: Source, config: MAEConfig) -> dict[str, Tensor]:
    """Native weights of the whole model.

    Raises:
        CheckpointError: Naming keys, unless the model of this config has just these keys and shapes.
    """
    for name in ("num_hidden_layers", "decoder_num_hidden_layers"):  # or making the model would take for ever
        if (depth := getattr(config, name)) > max(100, len(source.state_dict)):
            raise CheckpointError(f"{name} is {depth}, and there are {len(source.state_dict)} weights only")
    try:
        with torch.device("meta"):
            wanted = MODEL_CLASSES[source.kind](config).state_dict()
    except Exception as error:  # sizes beyond what a tensor can have
        raise CheckpointError(f"no model can be made of the configuration: {first_line(error)}") from error
    if source.kind == ENCODER:
        wanted = {f"mae.{key}": value for key, value in wanted.items()}
    native_keys, wanted, found = wanted.keys(), from_native(source.layout, wanted), source.state_dict
    both = [key for key in wanted if key in found]
    problems = {
        "missing": [key for key in wanted if key not in found],
        "not known": [key for key in found if key not in wanted],
        "of a type that no weight has": [
            f"{key} {found[key].dtype}"
            for key in both
            if found[key].dtype not in (_FLOATS if wanted[key].is_floating_point() else (wanted[key].dtype,))
        ],
        "of a shape that contradicts the others": [
            f"{key} {tuple(found[key].shape)}, not {tuple(wanted[key].shape)}"
            for key in both
            if found[key].shape != wanted[key].shape
        ],
    }
    if not config.apply_layernorm and problems["missing"] == [key for key in wanted if ".encoder.norm." in f".{key}"]:
        raise CheckpointError("a backbone of apply_layernorm=False lacks the final norm: it is no whole encoder")
    for what, keys in problems.items():
        if keys:
            raise CheckpointError(f"keys are {what} ({len(keys)}): {first_few(keys)}")
    native = to_native(source.layout, found)
    if apart := sorted(native.keys() - native_keys):
        raise CheckpointError(f"keys of one weight differ in dtype ({len(apart)}): {first_few(apart)}")
    return native
