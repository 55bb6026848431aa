"""From any layout to any other, through the native one, and proof that nothing was changed."""

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mae_hf.checkpoint import CheckpointError
from mae_hf.configuration_mae import MAEConfig
from mae_hf.remote_code import AUTO_MAP

from .cards import Provenance, folder_card
from .catalogue import LICENSE, Release, md5s_of, recognise
from .complete import complete_weights
from .config import NO_HINTS, Hints, config_of, released_preset
from .kinds import CLASSIFIERS, PRETRAINING
from .layouts import MAE_HF, OFFICIAL, TIMM, as_own_class, from_native, to_native
from .source import Source, read_source
from .staging import check_destination, staged
from .targets import check_target, class_name, kind_written, not_kept, read_back, write_config, write_weights
from .tensors import cast, differences, first_few, not_finite, own_storage, widest_dtype

NORM_PIX_LOSS_NOT_TOLD = "the default, as neither the file nor an option tells"


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        layout: Of the source.
        kind: Of what was written: "pretraining", "encoder", "finetuned", "finetuned_cls" or "linprobe".
        config: Of the model.
        class_name: Class that loads the folder.
        num_tensors: Tensors written, each read back and compared bit for bit.
        norm_pix_loss_from: Where `norm_pix_loss` comes from.
        checksummed: Whether the source carries checksums, which were checked.
        left_out: What the source holds beside the weights, such as "optimizer".
    """

    layout: str
    kind: str
    config: MAEConfig
    class_name: str
    num_tensors: int
    norm_pix_loss_from: str
    checksummed: bool
    left_out: tuple[str, ...]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = MAE_HF,
    overwrite: bool = False,
    norm_pix_loss: bool | None = None,
    hints: Hints = NO_HINTS,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    license: str | None = None,
    with_code: bool = False,
) -> Converted:
    """Convert weights from any layout to any other; the destination appears whole or not at all.

    Args:
        source: File with official keys (`.pth`, `.bin`, `.safetensors`), folder, name of a released file, or Hub id.
        destination: Folder to write, or file for `to="official"`.
        to: "mae_hf", "official", "vit_mae" or "timm".
        overwrite: Replace what a conversion has written.
        norm_pix_loss: Whether the model predicts normalised pixels, if neither the source nor the catalogue of released
            files tells.
        hints: Heads and image size, where the source does not tell them.
        dtype: Cast all weights; None keeps each as it is.
        max_shard_size: Largest size of one safetensors file.
        license: Licence of the weights for the card; a released file keeps its own. None for that of the source's card,
            or "other".
        with_code: Put the code of the models into the folder, so that transformers loads it with
            `trust_remote_code=True` where this package is not installed; for `to="mae_hf"`.

    Warns:
        UserWarning: If weights are not finite, or the target has no place for something.

    Raises:
        CheckpointError: If the source is not what it should be, or the destination may not be written.
    """
    destination = Path(destination)
    if with_code and to != MAE_HF:
        raise CheckpointError(f"the code is that of the {MAE_HF} layout: it does not go into a folder for {to}")
    check_destination(destination, overwrite, one_file=to == OFFICIAL)  # before minutes of reading
    found = read_source(source)
    try:
        check_target(to, found.kind)
        config = config_of(found, hints)
        weights = _weights_for(to, found.kind, complete_weights(found, config), dtype)
        config.dtype = widest_dtype(weights)
        with ThreadPoolExecutor(1) as pool, staged(destination, overwrite, one_file=to == OFFICIAL) as place:
            md5s = pool.submit(md5s_of, found.files)  # takes as long as all the rest together
            odd = not_finite(weights)
            write_weights(to, place, weights, max_shard_size)
            if lines := differences(weights, read_back(to, place)):
                raise CheckpointError(f"reading back what was written failed: {lines[0]}")
            release = recognise(found.path, md5s.result(), found.kind, released_preset(found, config.to_dict()))
            config.norm_pix_loss, origin = _norm_pix_loss(found, config, norm_pix_loss, release)
            license = LICENSE if release else license or found.license or "other"
            provenance = Provenance(found, md5s.result(), release, license, origin, dtype)
            if with_code:
                config.auto_map = dict(AUTO_MAP)  # makes the config take the code along
            if to != OFFICIAL:
                write_config(to, place, found.kind, config, license)
                folder_card(to, config, provenance, weights).save(place / "README.md")
    except ValueError as error:
        raise CheckpointError(f"{source} is not converted: {error}") from error
    if odd:
        warnings.warn(f"weights are NaN or infinite ({len(odd)}): {first_few(odd)}", stacklevel=2)
    for line in not_kept(to, found.kind, config):
        warnings.warn(line, stacklevel=2)
    return Converted(
        layout=found.layout,
        kind=kind_written(to, found.kind),
        config=config,
        class_name=class_name(to, found.kind),
        num_tensors=len(weights),
        norm_pix_loss_from=origin,
        checksummed=found.checksummed,
        left_out=found.others,
    )


def _weights_for(layout: str, kind: str, native: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What is to be written, under the names of the layout, each tensor with a storage of its own."""
    if layout == TIMM:
        native = {key: value for key, value in native.items() if not key.startswith("decoder.")}
    return own_storage(cast(as_own_class(layout, kind, from_native(layout, native)), dtype))


def verify(source: str | Path, destination: str | Path) -> list[str]:
    """Compare weights with what was made of them, in whatever layouts, every tensor bit for bit, both ways.

    Returns:
        One line for each tensor that is missing, extra or different, under its native name; empty if all are equal.

    Raises:
        CheckpointError: If one of the two cannot be read.
    """
    wanted, found = (_native(name) for name in (source, destination))
    return differences(wanted, found)


def _native(name: str | Path) -> dict[str, Tensor]:
    read = read_source(name)
    try:
        return to_native(read.layout, read.state_dict)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be compared: {error}") from error


def _norm_pix_loss(source: Source, config: MAEConfig, option: bool | None, release: Release | None) -> tuple[bool, str]:
    """The value, and where it comes from."""
    told, origin = source.args.get("norm_pix_loss"), "the training arguments in the file"
    if "norm_pix_loss" in source.fields:
        told, origin = config.norm_pix_loss, "the config of the folder"
    if not isinstance(told, int) and release is not None:  # arguments may hold anything
        told, origin = release.norm_pix_loss, "the catalogue of released files"
    if not isinstance(told, int):
        if option is not None:
            return option, "the option"
        if source.kind == PRETRAINING:
            return False, NORM_PIX_LOSS_NOT_TOLD
        return (
            False,
            f"the default, which {'a classifier' if source.kind in CLASSIFIERS else 'an encoder'} has no use for",
        )
    if option is not None and option != bool(told):
        raise CheckpointError(f"norm_pix_loss is {bool(told)} by {origin}: leave out the option that says otherwise")
    return bool(told), origin
