"""From any layout to any other, through the native one, with proof that no value changed."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from mae_hf.checkpoint import CheckpointError
from mae_hf.remote_code import AUTO_MAP

from .cards import folder_card, refuse_to_replace
from .layouts import LAYOUTS, NATIVE, Layout
from .source import Converted, given_sizes, read_source
from .staging import check_destination, staged

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = NATIVE.name,
    overwrite: bool = False,
    norm_pix_loss: bool | None = None,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: str = "5GB",
    license: str | None = None,
    with_code: bool = False,
) -> Converted:
    """Convert weights from any layout to any other; the destination appears whole or not at all.

    Args:
        source: File (`.pth`, `.bin`, `.safetensors`), folder, name of a released file, or Hub id.
        destination: Folder to write; for the official layout, a file.
        to: Name of the layout to write: "mae_hf", "official", "vit_mae", "timm" or another key of `layouts.LAYOUTS`.
        overwrite: Replace what an earlier conversion wrote.
        norm_pix_loss: Whether the model predicts normalised pixels, if neither the source nor the catalogue of released
            files specifies it.
        num_attention_heads: Heads of the encoder; required if the source does not specify them and no released model
            has its width.
        decoder_num_attention_heads: Heads of the decoder, under the same condition.
        image_size: (height, width) in pixels, for images that are not square.
        dtype: Cast all weights, to "bfloat16" or `torch.bfloat16` for example; None keeps the dtype of each.
        max_shard_size: Largest size of one safetensors file, such as "5GB".
        license: Licence of the weights for the card; a released file keeps its own. None for that of the source's card,
            or "other".
        with_code: Put the code of the models into the folder, so that transformers loads it with
            `trust_remote_code=True` where this package is not installed; for `to="mae_hf"`.

    Returns:
        What was written, and how it was recognised.

    Warns:
        UserWarning: If weights are not finite, or the layout cannot hold something.

    Raises:
        CheckpointError: If the source is not a complete masked autoencoder, an argument is invalid or missing, or the
            destination may not be written.
    """
    if to not in LAYOUTS:
        raise CheckpointError(f"unknown layout {to!r}: known are {', '.join(LAYOUTS)}")
    destination, layout = Path(destination), LAYOUTS[to]
    if with_code and not layout.has_code:
        raise CheckpointError(f"with_code is for the {NATIVE.name} layout only, not for {to}")
    if dtype is not None and (name := str(dtype).removeprefix("torch.")) not in _DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype}")
    cast_to = None if dtype is None else _DTYPES[name]
    if not isinstance(norm_pix_loss, (bool, type(None))):  # 1 equals True, but is not a valid field
        raise CheckpointError(f"norm_pix_loss must be True, False or None, got {norm_pix_loss!r}")
    given = given_sizes(num_attention_heads, decoder_num_attention_heads, image_size)
    options = {"overwrite": overwrite, "one_file": layout.is_file}
    check_destination(destination, refuse_to_replace, **options)  # before minutes of reading
    found = read_source(source)
    try:
        kind = layout.kind_written(found.kind)
        config = found.read_config(given)
        weights = _own_storage(layout.to_write(found.state_dict, kind), cast_to)
        dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
        config.dtype = functools.reduce(torch.promote_types, dtypes)  # a model loaded in it loses nothing
        if with_code:
            config.auto_map = dict(AUTO_MAP)
        with ThreadPoolExecutor(1) as pool, staged(destination, refuse_to_replace, **options) as place:
            hashing = pool.submit(found.md5s)  # takes as long as everything else together
            odd = [key for key, value in weights.items() if not all(map(torch.isfinite, torch.aminmax(value)))]
            _write(layout, place, weights, max_shard_size)
            md5s = hashing.result()
            release = found.recognise(md5s, config.to_dict())
            config.norm_pix_loss, origin = found.norm_pix_loss(norm_pix_loss, config, release)
            done = Converted(
                source=dataclasses.replace(found, state_dict={}),
                md5s=md5s,
                release=release,
                layout=layout,
                kind=kind,
                config=config,
                license=release.license if release else license or found.license or "other",
                norm_pix_loss_from=origin,
                dtype=cast_to,
                num_tensors=len(weights),
            )
            if not layout.is_file:
                layout.write_config(place, kind, config, done.license)
                folder_card(done, weights).save(place / "README.md")
    except ValueError as error:
        raise CheckpointError(f"{source} is not converted: {error}") from error
    if odd:
        warnings.warn(f"weights are NaN or infinite ({len(odd)}): {', '.join(odd[:4])}", stacklevel=2)
    for line in layout.not_kept(found.kind, config):
        warnings.warn(line, stacklevel=2)
    return done


def verify(source: str | Path, destination: str | Path) -> list[str]:
    """Compare weights with a conversion of them, in any layouts: every tensor bit for bit, both ways.

    Args:
        source: What was converted, as for `convert`.
        destination: What was written: file, folder or Hub id.

    Returns:
        One line for each tensor that is missing, extra or different, under its native name; empty if all are equal.

    Raises:
        CheckpointError: If one of the two cannot be read.
    """
    return differences(read_source(source).state_dict, read_source(destination).state_dict)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Compare tensors both ways, bit for bit: one line for each that is missing, extra or different."""
    lines = [f"{key} is missing" for key in expected if key not in found]
    lines += [f"{key} is extra" for key in found if key not in expected]
    for key in [key for key in expected if key in found]:
        ours, theirs = expected[key], found[key]
        if theirs.dtype != ours.dtype:
            lines.append(f"{key} is {theirs.dtype}, not {ours.dtype}")
        elif theirs.shape != ours.shape:
            lines.append(f"{key} has the shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        elif not torch.equal(_bytes(theirs), _bytes(ours)):
            lines.append(f"{key} has other values")
    return lines


def _bytes(tensor: Tensor) -> Tensor:
    """The bits of a tensor, so that NaN equals itself and -0.0 differs from 0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _write(layout: Layout, place: Path, weights: Mapping[str, Tensor], max_shard_size: str) -> None:
    """Write weights, read them back, and compare."""
    try:
        layout.write_weights(place, weights, max_shard_size)
    except (SafetensorError, OSError, RuntimeError) as error:  # the disk may be full
        raise CheckpointError(f"the weights cannot be written: {error}") from error
    if lines := differences(weights, layout.read_back(place)):
        raise CheckpointError(f"reading back what was written failed: {lines[0]}")


def _own_storage(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Cast floating-point tensors, and copy what safetensors rejects: not contiguous, or a part of a shared storage."""
    owned, seen = {}, set()
    for key, tensor in tensors.items():
        tensor = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        owned[key] = tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
    return owned
