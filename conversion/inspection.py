"""A look into a file or folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .catalogue import RELEASES, md5s_of, recognise, recognised_by
from .config import NO_HINTS, Hints, preset_of, read_sizes, released_preset
from .kinds import DESCRIPTIONS, PRETRAINING
from .source import read_source
from .tensors import count_parameters


def inspect(source: str | Path, hints: Hints = NO_HINTS) -> dict[str, str]:
    """Say what weights are: layout, kind, sizes, parameters, md5, and which released file.

    Args:
        source: File with official keys (`.pth`, `.bin`, `.safetensors`), folder, name of a released file, or Hub id.
        hints: Heads and image size, where the shapes do not tell them.

    Returns:
        Names and values, in the order in which to print them.

    Raises:
        CheckpointError: If it cannot be read or belongs to another model.
    """
    found = read_source(source)
    weights, kind = found.state_dict, found.kind
    sizes = read_sizes(found, hints)
    preset, md5s = preset_of(sizes), md5s_of(found.files)
    release = recognise(found.path, md5s, kind, released_preset(found, sizes))
    if release is not None:
        released = f"{release.name} ({recognised_by(release, md5s)})"
    else:
        alike = [
            other.name for other in RELEASES if (other.kind, other.preset) == (kind, released_preset(found, sizes))
        ]
        released = f"not recognised; same shapes: {', '.join(alike) or 'none'}"
    return {
        "layout": found.layout,
        "kind": f"{kind} ({DESCRIPTIONS[kind]})",
        "preset": preset or "none",
        "image size": str(sizes["image_size"]),
        "patch size": str(sizes["patch_size"]),
        "channels": str(sizes["num_channels"]),
        "width, depth, heads": _half(sizes, ""),
        "decoder": _half(sizes, "decoder_") if kind == PRETRAINING else "none",
        "tensors": str(len(weights)),
        "parameters": f"{count_parameters(weights):,}",
        "dtypes": ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})),
        "training arguments": ", ".join(sorted(found.args)) or "none",
        "beside the weights": ", ".join(found.others) or "nothing",
        "checksums": "checked" if found.checksummed else "none in this format",
        "md5": ", ".join(f"{md5} {name}" for name, md5 in md5s.items()),
        "released file": released,
    }


def _half(sizes: Mapping[str, Any], half: str) -> str:
    """Width, depth and heads of encoder or decoder."""
    heads = sizes[f"{half}num_attention_heads"] or "unknown"
    return f"{sizes[f'{half}hidden_size']}, {sizes[f'{half}num_hidden_layers']}, {heads}"
