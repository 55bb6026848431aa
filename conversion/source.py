"""Reading weights: a file, a folder in any layout, or either by its name; and a summary of them."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor

from mae_hf.checkpoint import Checkpoint, CheckpointError, read_checkpoint, read_config, read_folder
from mae_hf.configuration_mae import MAEConfig
from mae_hf.patch_embed import to_pair

from .inference import (
    DESCRIPTIONS,
    PRETRAINING,
    RELEASED_HEADS,
    check_complete,
    count_parameters,
    kind_of,
    preset_of,
    released_preset,
)
from .layouts import Layout, recognise_layout
from .releases import RELEASES, Release, locate, md5_of, recognise


@dataclass(frozen=True, kw_only=True)
class Source(Checkpoint):
    """Weights under native names, and what is known of them.

    Attributes:
        state_dict: Weights under native names.
        fields: Training arguments in the file, or the content of the folder's `config.json`.
        checksummed: Whether the files have checksums, which were then verified.
        files: The files that were read.
        others: What else the file contains, such as "optimizer" and "args".
        wrapper: Key under which the state dict is stored in the file; "" if there is none.
        path: File or folder.
        name: Name for messages and cards: that of the file or folder, or the Hub id, in one line of plain text.
        layout: Layout of the file or folder.
        kind: "pretraining", "encoder", "finetuned", "finetuned_cls" or "linprobe".
        license: Licence in the folder's card, or None.
    """

    path: Path
    name: str
    layout: Layout
    kind: str
    license: str | None = None

    def read_config(self, given: Mapping[str, Any]) -> MAEConfig:
        """Read or infer the configuration, and check that the weights are exactly those of such a model.

        Args:
            given: Heads and image size as passed by the caller; see `Layout.read_fields`.

        Raises:
            CheckpointError: If it is contradictory, something cannot be inferred, or keys or shapes do not fit; the
                message names keys as in the file.
            ValueError: If it is invalid.
        """
        fields = self.layout.read_fields(self.state_dict, self.fields, given)
        if unknown := [f"--{name.replace('_', '-')} N" for name in RELEASED_HEADS if fields.get(name, 0) is None]:
            raise CheckpointError(f"no released model has these widths: pass the number of heads, {' '.join(unknown)}")
        config: MAEConfig = MAEConfig.from_dict(fields)
        check_complete(self.state_dict, config, self.layout.from_native)
        return config

    def md5s(self) -> dict[str, str]:
        """Compute the md5 of each file that was read, by its name."""
        return {file.name: md5_of(file) for file in self.files}

    def recognise(self, md5s: Mapping[str, str], sizes: Mapping[str, Any]) -> Release | None:
        """Return the released file that this is, or None."""
        return recognise(self.path, md5s, self.kind, released_preset(sizes, self.state_dict))

    def norm_pix_loss(self, option: bool | None, config: MAEConfig, release: Release | None) -> tuple[bool, str | None]:
        """Return whether the model predicts normalised pixels, and what specifies it; None if it is assumed.

        Raises:
            CheckpointError: If the option contradicts what is known.
        """
        known, origin = self.fields.get("norm_pix_loss"), "the training arguments in the file"
        if not self.layout.is_file:
            specified = self.layout.config_of is not None and (known is not None or config.norm_pix_loss)
            known, origin = config.norm_pix_loss if specified else None, "the config of the folder"
        if not isinstance(known, int) and release is not None:  # training arguments may hold anything
            known, origin = release.norm_pix_loss, "the catalogue of released files"
        if not isinstance(known, int):
            return (False, None) if option is None else (option, "the option")
        if option is not None and option != bool(known):
            raise CheckpointError(f"norm_pix_loss is {bool(known)} by {origin}: leave out the contradictory option")
        return bool(known), origin


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        source: What was read, without its weights.
        md5s: md5 of each file that was read, by its name.
        release: The released file that the source is, or None.
        layout: Layout that was written.
        kind: Kind of the weights that were written.
        config: Configuration of the model.
        license: Licence of the weights.
        norm_pix_loss_from: What specifies `norm_pix_loss`; None if it is assumed.
        dtype: What the weights were cast to, or None.
        num_tensors: Tensors written, each read back and compared bit for bit.
    """

    source: Source
    md5s: Mapping[str, str]
    release: Release | None
    layout: Layout
    kind: str
    config: MAEConfig
    license: str
    norm_pix_loss_from: str | None
    dtype: torch.dtype | None
    num_tensors: int


def read_source(name: str | Path) -> Source:
    """Read a file or folder, and rename its weights to native names.

    Args:
        name: `.pth`, `.bin` or `.safetensors` file with official keys, folder, name of a released file, or Hub id.

    Raises:
        CheckpointError: If it does not exist, is damaged, or belongs to another model.
    """
    path = locate(name)
    config = read_config(path) if path.is_dir() else None
    found = read_checkpoint(path) if config is None else read_folder(path)
    try:
        layout = recognise_layout(found.state_dict, config)
        weights = _to_native(layout, found.state_dict)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    plain_name = re.sub(r"[\s|`]+", " ", path.resolve().name if path == Path(name) else str(name))
    values: dict[str, Any] = {**vars(found), "state_dict": weights, "path": path, "name": plain_name, "layout": layout}
    if config is not None:
        values |= {"fields": config, "license": _license_of(path / "README.md")}
    return Source(**values, kind=kind_of(weights))


def _to_native(layout: Layout, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = layout.normalise(state_dict)
    weights = layout.to_native(named)
    foreign = sorted(named.keys() - layout.from_native(weights).keys())
    if foreign:  # they would pass for keys of this layout
        raise CheckpointError(f"these keys belong to another layout than {layout.name}: {', '.join(foreign[:3])}")
    return weights


def _license_of(card: Path) -> str | None:
    """Licence in the metadata of a card, or None: a card is written by hand and may hold anything."""
    with suppress(Exception):
        license = ModelCard.load(card, ignore_metadata_errors=True).data.license
        return license if isinstance(license, str) else None
    return None


def inspect(
    source: str | Path,
    *,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> dict[str, str]:
    """Summarise weights: layout, kind, sizes, parameters, md5, and which released file they are.

    Args:
        source: File with official keys (`.pth`, `.bin`, `.safetensors`), folder, name of a released file, or Hub id.
        num_attention_heads: Heads of the encoder, which shapes do not determine.
        decoder_num_attention_heads: Heads of the decoder, which shapes do not determine.
        image_size: (height, width) in pixels, for images that are not square.

    Returns:
        Names and values, in the order in which `mae-hf inspect` prints them.

    Raises:
        CheckpointError: If the source cannot be read or belongs to another model.
    """
    given = given_sizes(num_attention_heads, decoder_num_attention_heads, image_size)
    found = read_source(source)
    weights, in_file = found.state_dict, found.layout.from_native(found.state_dict)
    sizes = found.layout.read_fields(weights, found.fields, given)
    md5s = found.md5s()
    if release := found.recognise(md5s, sizes):
        released = f"{release.name} ({release.recognised_by(md5s)})"
    else:
        preset = released_preset(sizes, weights)
        alike = [other.name for other in RELEASES if (other.kind, other.preset) == (found.kind, preset)]
        released = f"not recognised; same shapes: {', '.join(alike) or 'none'}"
    return {
        "layout": found.layout.name,
        "kind": f"{found.kind} ({DESCRIPTIONS[found.kind]})",
        "preset": preset_of(sizes) or "none",
        "image size": str(sizes["image_size"]),
        "patch size": str(sizes["patch_size"]),
        "channels": str(sizes["num_channels"]),
        "width, depth, heads": _width_depth_heads(sizes, ""),
        "decoder": _width_depth_heads(sizes, "decoder_") if found.kind == PRETRAINING else "none",
        "tensors": str(len(in_file)),
        "parameters": f"{count_parameters(weights):,}",
        "dtypes": ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})),
        "training arguments": ", ".join(sorted(found.fields)) if found.path.is_file() and found.fields else "none",
        "other content": ", ".join(found.others) or "nothing",
        "checksums": "verified" if found.checksummed else "none in this format",
        "md5": ", ".join(f"{md5} {name}" for name, md5 in md5s.items()),
        "released file": released,
    }


def _width_depth_heads(sizes: Mapping[str, Any], half: str) -> str:
    heads = sizes[f"{half}num_attention_heads"] or "unknown"
    return f"{sizes[f'{half}hidden_size']}, {sizes[f'{half}num_hidden_layers']}, {heads}"


def given_sizes(heads: int | None, decoder_heads: int | None, size: int | tuple[int, int] | None) -> dict[str, Any]:
    """Return what the caller passed, as fields of the configuration."""
    image_size = None if size is None else to_pair(size)
    fields = {"num_attention_heads": heads, "decoder_num_attention_heads": decoder_heads, "image_size": image_size}
    return {name: value for name, value in fields.items() if value is not None}
