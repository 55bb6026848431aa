"""Official checkpoint to folder, and proof that nothing was changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from torch import Tensor

from mae_hf.checkpoint import CheckpointError, read_checkpoint
from mae_hf.configuration_mae import MAEConfig
from mae_hf.image_processor import image_processor

from .cards import Source, folder_card
from .catalogue import Release, md5_of, recognise
from .folder import check_destination, differences, new_folder, own_storage, read_folder
from .official import (
    DESCRIPTIONS,
    ENCODER,
    MODEL_CLASSES,
    NO_HINTS,
    Hints,
    check_complete,
    infer_config,
    kind_of,
    preset_of,
    to_native,
)

UNKNOWN_TARGET = "the default, as neither the file nor an option tells"


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        kind: "pretraining" or "encoder".
        config: Of the folder.
        num_tensors: Tensors written, each read back and compared bit for bit.
        norm_pix_loss_from: Where `norm_pix_loss` comes from.
    """

    kind: str
    config: MAEConfig
    num_tensors: int
    norm_pix_loss_from: str


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    overwrite: bool = False,
    norm_pix_loss: bool | None = None,
    hints: Hints = NO_HINTS,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    license: str | None = None,
) -> Converted:
    """Convert an official `.pth` into a folder for `from_pretrained`; the folder appears whole or not at all.

    Args:
        source: `.pth` file: encoder only, pretraining model, or training checkpoint.
        destination: Folder to write.
        overwrite: Replace a folder that a conversion has written.
        norm_pix_loss: Whether the model predicts normalised pixels, if neither the training arguments in the file nor
            the catalogue of released files tell.
        hints: Heads and image size, where the shapes do not tell them.
        dtype: Cast all weights; None keeps each as it is.
        max_shard_size: Largest size of one safetensors file.
        license: Licence of the weights for the card, unless the file is a released one; "other" if None.

    Raises:
        CheckpointError: If the file is not what it should be, or the destination may not be written.
    """
    source, destination = Path(source), Path(destination)
    check_destination(destination, overwrite)  # before minutes of reading
    checkpoint = read_checkpoint(source)
    try:
        kind = kind_of(checkpoint.state_dict)
        if kind not in MODEL_CLASSES:
            reason = "classifiers are not supported yet, only encoders and pretraining models"
            raise CheckpointError(f"a {DESCRIPTIONS[kind]} ({kind}): {reason}")
        config = infer_config(checkpoint.state_dict, kind, hints, **_training_fields(checkpoint.args))
        check_complete(checkpoint.state_dict, kind, config)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is not converted: {error}") from error
    md5 = md5_of(source)
    release = recognise(source, md5, kind, preset_of(config.to_dict()))
    config.norm_pix_loss, origin = _norm_pix_loss(kind, norm_pix_loss, checkpoint.args, release)
    native = own_storage({key: _cast(value, dtype) for key, value in to_native(checkpoint.state_dict, kind).items()})
    config.architectures = [MODEL_CLASSES[kind].__name__]
    config.dtype = _common_dtype(native)
    card = folder_card(
        config,
        Source(source.name, md5, kind, release, license, origin, checkpoint.checksummed, dtype),
        sum(value.numel() for value in native.values()),
    )
    with new_folder(destination, overwrite) as folder:
        config.save_pretrained(folder)
        if config.num_channels == 3:
            image_processor(config).save_pretrained(folder)
        try:
            save_torch_state_dict(dict(native), folder, max_shard_size=max_shard_size)
        except SafetensorError as error:  # a full disk, for example
            raise CheckpointError(f"{destination} cannot be written: {error}") from error
        for file in folder.glob("*.safetensors"):  # written readable for their owner alone
            file.chmod((folder / "config.json").stat().st_mode)
        card.save(folder / "README.md")
        if lines := differences(native, read_folder(folder)):
            raise CheckpointError(f"reading back what was written failed: {lines[0]}")
    return Converted(kind, config, len(native), origin)


def verify(source: str | Path, folder: str | Path) -> list[str]:
    """Compare a `.pth` with the folder made of it, every tensor bit for bit, both ways.

    Returns:
        One line for each tensor that is missing, extra or different; empty if all are equal.

    Raises:
        CheckpointError: If one of the two cannot be read.
    """
    state_dict = read_checkpoint(source).state_dict
    try:
        kind = kind_of(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f"{source} cannot be compared: {error}") from error
    return differences(to_native(state_dict, kind), read_folder(Path(folder)))


def _training_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the config that training arguments tell."""
    ratio = args.get("mask_ratio")
    return {"mask_ratio": ratio} if isinstance(ratio, float) else {}


def _norm_pix_loss(
    kind: str, option: bool | None, args: Mapping[str, Any], release: Release | None
) -> tuple[bool, str]:
    """The value, and where it comes from."""
    told = args.get("norm_pix_loss")
    origin = "the training arguments in the file"
    if told not in (False, True) and release is not None:
        told, origin = release.norm_pix_loss, "the catalogue of released files"
    if told not in (False, True):
        if option is not None:
            return option, "the option"
        return False, "the default, which an encoder has no use for" if kind == ENCODER else UNKNOWN_TARGET
    if option is not None and option != told:
        raise CheckpointError(f"{origin} say that norm_pix_loss is {told}: leave out the option that says otherwise")
    return bool(told), origin


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None
