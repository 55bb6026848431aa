"""Dictionaries of tensors: what they hold, and whether two are the same."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def count_parameters(state_dict: Mapping[str, Tensor]) -> int:
    """Number of parameters in weights of any layout, the running statistics of a linear probe left out."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(value.numel() for key, value in state_dict.items() if not key.endswith(statistics))


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Cast what is floating point; None keeps every dtype."""
    if dtype is None:
        return dict(tensors)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Keys of tensors that hold NaN or infinity."""
    return [key for key, value in tensors.items() if not all(map(torch.isfinite, torch.aminmax(value)))]


def first_few(names: Sequence[str]) -> str:
    """The first four names, for a message."""
    return f"{', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"


def widest_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds all floating-point tensors without loss, in which a model of them is to be loaded."""
    return functools.reduce(torch.promote_types, {x.dtype for x in tensors.values() if x.is_floating_point()})


def own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what is not contiguous, is a part of a larger storage, or shares one: safetensors takes none of these."""
    owned, seen = {}, set()
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        owned[key] = tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
    return owned


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Compare tensors both ways, bit for bit: one line for each that is missing, extra or different."""
    lines = [f"{key} is missing" for key in wanted if key not in found]
    lines += [f"{key} is extra" for key in found if key not in wanted]
    for key in wanted:
        if key in found and (difference := _difference(wanted[key], found[key])):
            lines.append(f"{key} {difference}")
    return lines


def _difference(wanted: Tensor, found: Tensor) -> str | None:
    if wanted.dtype != found.dtype:
        return f"is {found.dtype}, not {wanted.dtype}"
    if wanted.shape != found.shape:
        return f"has the shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    same = torch.equal(_bytes(wanted), _bytes(found))
    return None if same else "has other values"


def _bytes(tensor: Tensor) -> Tensor:
    """The bits of a tensor, so that NaN equals itself and -0.0 differs from 0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
