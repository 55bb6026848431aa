"""Train the demo checkpoint and evaluate it on a held-out photograph.

pip install --constraint constraints.txt --editable ".[demo]"    # scikit-image and scikit-learn, for photographs
python examples/demo/train.py                                    # about half an hour on two cores
python examples/demo/train.py --evaluate                         # the numbers of the card, for the existing checkpoint
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from mae_hf import MaskedAutoencoder, patchify
from mae_hf.checkpoint import read_checkpoint

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mae_demo.pth"
HELD_OUT = HERE / "chelsea.png"
SIZES = {
    "img_size": 128,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "decoder_embed_dim": 64,
    "decoder_depth": 4,
    "decoder_num_heads": 4,
}
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])
MASK_RATIO = 0.75


def to_tensor(image: Image.Image) -> Tensor:
    """Return the normalised pixels of an RGB image, `(3, H, W)`."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3)
    return ((pixels / 255 - MEAN) / STD).permute(2, 0, 1)


def training_photographs() -> list[Image.Image]:
    """Return the photographs of the card, at most 512 pixels on their shorter side."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = [data.astronaut(), data.coffee(), data.rocket(), data.hubble_deep_field(), data.retina()]
    arrays += [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    images = [Image.fromarray(array) for array in arrays]
    for image in images:
        image.thumbnail((512 * max(image.size) // min(image.size), 512 * max(image.size) // min(image.size)))
    return images


class Crops(Dataset):
    """Random resized crops with flips, rotations and permutations of the colour channels, determined by the index.

    Args:
        images: Photographs to crop.
        count: Length of the dataset.
    """

    def __init__(self, images: list[Image.Image], count: int) -> None:
        self.images = images
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        rng = random.Random(index)
        image = rng.choice(self.images)
        side = SIZES["img_size"]
        area = image.width * image.height * math.exp(rng.uniform(math.log(0.08), 0))
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(math.sqrt(area * aspect), image.width)
        height = min(math.sqrt(area / aspect), image.height)
        left = rng.uniform(0, image.width - width)
        top = rng.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        pixels = to_tensor(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
        if rng.random() < 0.5:
            pixels = pixels.flip(2)
        pixels = torch.rot90(pixels, rng.choice((0, 0, 0, 1, 2, 3)), (1, 2))
        return pixels[rng.sample(range(3), 3)] if rng.random() < 0.5 else pixels


def train(steps: int, batch_size: int, peak: float) -> MaskedAutoencoder:
    """Train by a scaled-down official recipe: AdamW, warmup, half-cycle cosine, mask ratio 0.75, raw pixels.

    Args:
        steps: Optimizer steps.
        batch_size: Images per step.
        peak: Learning rate after the warmup.
    """
    torch.manual_seed(0)
    model = MaskedAutoencoder(**SIZES)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    warmup = steps // 20

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    crops = DataLoader(Crops(training_photographs(), steps * batch_size), batch_size, num_workers=1)
    started = time.monotonic()
    total = 0.0
    for step, images in enumerate(crops, start=1):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _, _ = model(images, mask_ratio=MASK_RATIO)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 250 == 0:
            print(f"step {step}/{steps}  loss {total / 250:.4f}  {time.monotonic() - started:.0f} s", flush=True)
            total = 0.0
    return model


def fill_with_mean(patches: Tensor, masked: Tensor) -> Tensor:
    """Baseline (a): fill every patch with the mean colour of the visible pixels.

    Args:
        patches: `(L, P * P, 3)`.
        masked: `(L,)` bool, True is masked.
    """
    return patches[~masked].mean(dim=(0, 1)).expand_as(patches)


def fill_bilinearly(patches: Tensor, masked: Tensor) -> Tensor:
    """Baseline (b): interpolate the means of the visible patches bilinearly, then upsample their grid bilinearly.

    A masked cell of the grid is a weighted mean of the visible cells less than two cells away, with weights that fall
    linearly in both directions; where there are none, the radius grows.

    Args:
        patches: `(L, P * P, 3)`.
        masked: `(L,)` bool, True is masked.
    """
    side = math.isqrt(len(patches))
    cells = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1).reshape(-1, 2)
    distances = (cells[:, None] - cells[None, ~masked]).abs()  # L L_keep 2
    means = patches[~masked].mean(dim=1)  # L_keep 3
    filled = torch.full((len(patches), 3), float("nan"))
    for radius in range(2, 2 * side):
        weights = (1 - distances / radius).clamp(min=0).prod(dim=-1)  # L L_keep
        new = filled[:, 0].isnan() & (weights.sum(dim=1) > 0)
        filled[new] = (weights @ means / weights.sum(dim=1, keepdim=True))[new]
    filled[~masked] = means
    grid = filled.T.reshape(1, 3, side, side)  # L 3 -> 1 3 h w
    pixels = interpolate(grid, size=SIZES["img_size"], mode="bilinear", align_corners=False)
    return patchify(pixels, SIZES["patch_size"])[0].reshape(patches.shape)


@torch.no_grad()
def evaluate(model: MaskedAutoencoder, masks: int = 32) -> dict[str, float]:
    """Return the mean squared error on the masked patches of the held-out photograph, of the model and the baselines.

    Args:
        model: Trained model.
        masks: Number of random masks to average over.

    Returns:
        Errors in normalised pixels by the name of the method.
    """
    image = Image.open(HELD_OUT).convert("RGB")
    side = min(image.size)
    left = (image.width - side) // 2
    top = (image.height - side) // 2
    size = (SIZES["img_size"], SIZES["img_size"])
    image = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    images = to_tensor(image).unsqueeze(0)
    target = patchify(images, SIZES["patch_size"])[0].unflatten(1, (-1, 3))  # L P*P 3
    noise = torch.rand(masks, len(target), generator=torch.Generator().manual_seed(0))
    errors = {"this model": 0.0, "(a) mean of the visible pixels": 0.0, "(b) bilinear from visible patch means": 0.0}
    model.eval()
    for row in noise:
        _, pred, mask = model(images, mask_ratio=MASK_RATIO, noise=row.unsqueeze(0))
        masked = mask[0].bool()
        fillings = (pred[0].unflatten(1, (-1, 3)), fill_with_mean(target, masked), fill_bilinearly(target, masked))
        for name, filling in zip(errors, fillings, strict=True):
            errors[name] += ((filling - target)[masked] ** 2).mean().item() / masks
    return errors


def main() -> None:
    """Train unless --evaluate is given, then evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evaluate", action="store_true", help="evaluate the existing checkpoint without training")
    parser.add_argument("--steps", type=int, default=11000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="checkpoint to write or to evaluate")
    options = parser.parse_args()
    if options.evaluate:
        model = MaskedAutoencoder(**SIZES)
        model.load_state_dict(read_checkpoint(options.output).state_dict)
    else:
        model = train(options.steps, options.batch_size, options.lr)
        args = argparse.Namespace(norm_pix_loss=False, mask_ratio=MASK_RATIO, input_size=SIZES["img_size"])
        torch.save({"model": model.state_dict(), "args": args}, options.output)
    print(f"mean squared error on masked patches of {HELD_OUT.name}, normalised pixels, mean of 32 masks")
    for name, error in (errors := evaluate(model)).items():
        change = error / errors["(a) mean of the visible pixels"] - 1
        print(f"  {name:40s} {error:.4f}  {change:+.1%} against (a)")


if __name__ == "__main__":
    main()
