"""Compare the three sizes with the official implementation, and print the table that README and cards quote.

    python -m benchmarks.parity              # make parity
    python -m benchmarks.parity --write      # make cards: also writes README and cards
    python -m benchmarks.parity --cards      # writes README and cards with the figures of the last time

For each size: weights by the recipe of the golden values, written as an official .pth, converted by the command line,
loaded with `from_pretrained`, run on the input of the golden values.
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

from benchmarks.recipe import REFERENCE, recipe_input, write_official
from mae_hf import MAEConfig, MAEForPreTraining, MAEModel
from mae_hf.configuration_mae import PRESETS
from mae_hf.conversion.cards import CARDS, size_table, write_cards


def converted(preset: str, folder: Path, kind: str = "pretrain_full") -> Path:
    """Make the recipe's checkpoint of one size and kind and convert it by command line."""
    source, destination = folder / f"{kind}_{preset}.pth", folder / f"mae-vit-{preset}"
    write_official(preset, source, kind)
    command = [sys.executable, "-m", "mae_hf.cli", "convert", str(source), str(destination)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    source.unlink()
    return destination


@torch.no_grad()
def measure_differences(model: MAEForPreTraining, preset: str) -> dict[str, float]:
    """Largest absolute differences from the golden values in latent, pred and both losses; masks must be equal."""
    golden = load_file(REFERENCE / "full" / f"{preset}.safetensors")
    pixel_values, noise = recipe_input(golden["noise"].shape[1])
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
    """Matrix products of one image through the encoder, in 10^9 operations: additions and multiplications."""
    with torch.device("meta"):
        model = MAEModel(config).eval()
        images = torch.empty(1, 3, 224, 224)
    model.set_attn_implementation("eager")  # all products in sight
    with FlopCounterMode(display=False) as counter:
        model(images, mask_ratio=mask_ratio)
    return round(counter.get_total_flops() / 1e9, 1)


@torch.no_grad()
def measure_memory(model: MAEForPreTraining) -> int:
    """Weights, and the largest sum of intermediate results of one forward pass of one image, in 10^6 bytes.

    Allocations are read from the profiler of PyTorch 2.13; nothing public tells them in order.
    """
    images = torch.zeros(1, 3, *model.mae.patch_embed.img_size)
    with torch.profiler.profile(profile_memory=True) as profile:
        model(images)
    held = largest = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            held += event.nbytes()
            largest = max(largest, held)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return round((weights + largest) / 1e6)


def _sizes(config: MAEConfig, half: str) -> str:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return ", ".join(str(getattr(config, half + name)) for name in names)


def measure(preset: str, folder: Path) -> dict[str, Any]:
    """All that the table says of one size."""
    model, info = MAEForPreTraining.from_pretrained(converted(preset, folder), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = model.config
    differences = measure_differences(model, preset)
    return {
        "patch": config.patch_size,
        "encoder": _sizes(config, ""),
        "decoder": _sizes(config, "decoder_"),
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
    """Measure, print, and keep the figures if told to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep the figures, and write README and cards with them")
    parser.add_argument("--cards", action="store_true", help="do not measure: write README and cards")
    options = parser.parse_args()
    if options.cards:
        return write_cards()
    found = {}
    for preset in PRESETS:
        with tempfile.TemporaryDirectory() as folder:
            found[preset] = measure(preset, Path(folder))
        gc.collect()
    print(size_table(found))
    if options.write:
        (CARDS / "parity.json").write_text(json.dumps(found, indent=2) + "\n")
        write_cards()


if __name__ == "__main__":
    main()
