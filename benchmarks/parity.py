"""Compare the sizes that have golden values with the official implementation, and print the table of README and cards.

    python -m benchmarks.parity              # make parity
    python -m benchmarks.parity --write      # make cards: also writes README and cards

`python -m scripts.size_cards` writes README and cards with the last measurements. For each size, the golden weights are
written as an official .pth, converted by the command line, loaded with `from_pretrained`, and run on the golden input.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.golden_weights import REFERENCE, golden_input, write_official
from mae_hf import MAEConfig, MAEForPreTraining, MAEModel
from mae_hf.configuration_mae import PRESETS
from scripts.size_cards import MEASUREMENTS, size_table, write_cards

SIZES = [size for size in PRESETS if (REFERENCE / "full" / f"{size}.safetensors").exists()]


def converted(size: str, folder: Path, kind: str = "pretrain_full") -> Path:
    """Write the golden weights of a size as an official checkpoint, and convert it by the command line.

    Args:
        size: One of `SIZES`.
        folder: Folder to write to.
        kind: See `read_manifest`.

    Returns:
        The converted folder.
    """
    source = folder / f"{kind}_{size}.pth"
    destination = folder / f"mae-vit-{size}"
    write_official(size, source, kind)
    command = [sys.executable, "-m", "mae_hf.cli", "convert", str(source), str(destination)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    source.unlink()
    return destination


@torch.no_grad()
def measure_differences(model: MAEForPreTraining, size: str) -> dict[str, float]:
    """Return the largest absolute differences from the golden values of each output; the masks must be equal."""
    golden = load_file(REFERENCE / "full" / f"{size}.safetensors")
    pixel_values, noise = golden_input(golden["noise"].shape[1])
    latent = model.mae(pixel_values, noise=noise, mask_ratio=0.75).last_hidden_state
    found = {"latent": (latent, golden["latent"])}
    for norm_pix_loss, key in ((False, "loss"), (True, "loss_norm_pix")):
        model.config.norm_pix_loss = norm_pix_loss
        out = model(pixel_values, noise=noise, mask_ratio=0.75)
        found |= {"pred": (out.logits, golden["pred"]), key: (out.loss, golden[key])}
        assert torch.equal(out.mask, golden["mask"]) and torch.equal(out.ids_restore, golden["ids_restore"])
    in_order = model.mae(pixel_values).last_hidden_state[:, : golden["encoder"].shape[1]]
    found["encoder"] = (in_order, golden["encoder"])
    return {key: (ours - theirs).abs().max().item() for key, (ours, theirs) in found.items()}


def count_gflops(config: MAEConfig, mask_ratio: float | None) -> float:
    """Count the operations (additions and multiplications) of the encoder's matrix products for one image, in 10^9."""
    with torch.device("meta"):
        model = MAEModel(config).eval()
        images = torch.empty(1, 3, 224, 224)
    model.set_attn_implementation("eager")  # so that every product is counted
    with FlopCounterMode(display=False) as counter:
        model(images, mask_ratio=mask_ratio)
    return round(counter.get_total_flops() / 1e9, 1)


@torch.no_grad()
def measure_memory(model: MAEForPreTraining) -> int:
    """Return the size of the weights plus the peak of intermediate results in the forward pass of one image, in MB.

    The allocations come from the profiler of PyTorch 2.13; there is no public interface that lists them in order.
    """
    images = torch.zeros(1, 3, *model.mae.patch_embed.img_size)
    with torch.profiler.profile(profile_memory=True) as profile:
        model(images)
    allocated = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            allocated += event.nbytes()
            peak = max(peak, allocated)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return round((weights + peak) / 1e6)


def _widths(config: MAEConfig, prefix: str) -> str:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return ", ".join(str(getattr(config, prefix + name)) for name in names)


def measure(size: str, folder: Path) -> dict[str, Any]:
    """Return the column of a size in the table; `folder` is for its checkpoint."""
    model, info = MAEForPreTraining.from_pretrained(converted(size, folder), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = model.config
    differences = measure_differences(model, size)
    return {
        "patch": config.patch_size,
        "encoder": _widths(config, ""),
        "decoder": _widths(config, "decoder_"),
        "mlp_ratio": config.intermediate_size // config.hidden_size,
        "patches": model.mae.patch_embed.num_patches,
        "encoder_parameters": model.mae.num_parameters(),
        "parameters": model.num_parameters(),
        "gflops_unmasked": count_gflops(config, None),
        "gflops_masked": count_gflops(config, 0.75),
        "memory_mb": measure_memory(model),
        "latent": max(differences["latent"], differences["encoder"]),
        "pred": differences["pred"],
        "loss": max(differences["loss"], differences["loss_norm_pix"]),
    }


def main() -> None:
    """Measure and print; with --write, also update the measurements, README and cards."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="update the measurements, README and cards")
    options = parser.parse_args()
    found = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found[size] = measure(size, Path(folder))
        gc.collect()
    print(size_table(found))
    if options.write:
        MEASUREMENTS.write_text(json.dumps(found, indent=2) + "\n")
        write_cards()


if __name__ == "__main__":
    main()
