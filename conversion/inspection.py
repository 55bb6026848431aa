"""A look into a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_hf.checkpoint import read_checkpoint

from .catalogue import RELEASES, is_proven, md5_of, recognise
from .official import DESCRIPTIONS, NO_HINTS, Hints, kind_of, preset_of, read_sizes


def inspect(source: str | Path, hints: Hints = NO_HINTS) -> dict[str, str]:
    """Say what a `.pth` file is: layout, kind, sizes, parameters, md5, and which released file.

    Args:
        source: `.pth` file.
        hints: Heads and image size, where the shapes do not tell them.

    Returns:
        Names and values, in the order in which to print them.

    Raises:
        CheckpointError: If it cannot be read or belongs to another model.
    """
    source = Path(source)
    checkpoint = read_checkpoint(source)
    weights = checkpoint.state_dict
    kind = kind_of(weights)
    sizes = read_sizes(weights, kind, hints)
    preset, md5 = preset_of(sizes), md5_of(source)
    release = recognise(source, md5, kind, preset)
    if release is not None:
        released = f"{release.name} (its {'md5' if is_proven(release, md5) else 'name and shapes'})"
    else:
        alike = [other.name for other in RELEASES if (other.kind, other.preset) == (kind, preset)]
        released = f"not recognised; same shapes: {', '.join(alike) or 'none'}"
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # of a linear probe
    parameters = sum(value.numel() for key, value in weights.items() if not key.endswith(statistics))
    has_decoder = "decoder_hidden_size" in sizes
    return {
        "layout": "official",
        "kind": f"{kind} ({DESCRIPTIONS[kind]})",
        "preset": preset or "none",
        "image size": str(sizes["image_size"]),
        "patch size": str(sizes["patch_size"]),
        "channels": str(sizes["num_channels"]),
        "width, depth, heads": _half(sizes, ""),
        "decoder": _half(sizes, "decoder_") if has_decoder else "none",
        "tensors": str(len(weights)),
        "parameters": f"{parameters:,}",
        "dtypes": ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})),
        "training arguments": ", ".join(sorted(checkpoint.args)) or "none",
        "checksums": "checked" if checkpoint.checksummed else "none (old serialisation)",
        "md5": md5,
        "released file": released,
    }


def _half(sizes: Mapping[str, Any], half: str) -> str:
    """Width, depth and heads of encoder or decoder."""
    heads = sizes[f"{half}num_attention_heads"] or "unknown"
    return f"{sizes[f'{half}hidden_size']}, {sizes[f'{half}num_hidden_layers']}, {heads}"
