"""Train the demo checkpoint, and say how good it is on a photograph that it has not seen.

pip install --constraint constraints.txt --editable ".[demo]"    # scikit-image and scikit-learn, for photographs
python examples/demo/train.py                                    # about half an hour on two cores
python examples/demo/train.py --evaluate                         # the figures of the card, for the file there is
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
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
MASK_RATIO = 0.75


def to_tensor(image: Image.Image) -> Tensor:
    """Pixels of an RGB image, normalised, `(3, H, W)`."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3)
    return ((pixels / 255 - MEAN) / STD).permute(2, 0, 1)


def training_photographs() -> list[Image.Image]:
    """The photographs of the card, at most 512 pixels on their shorter side."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = [data.astronaut(), data.coffee(), data.rocket(), data.hubble_deep_field(), data.retina()]
    arrays += [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    images = [Image.fromarray(array) for array in arrays]
    for image in images:
        image.thumbnail((512 * max(image.size) // min(image.size), 512 * max(image.size) // min(image.size)))
    return images


class Crops(Dataset):
    """Endless random resized crops, flips, turns and orders of the colour channels; the same for the same index."""

    def __init__(self, images: list[Image.Image], count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        rng = random.Random(index)
        image, side = rng.choice(self.images), SIZES["img_size"]
        area = image.width * image.height * math.exp(rng.uniform(math.log(0.08), 0))
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = min(math.sqrt(area * aspect), image.width), min(math.sqrt(area / aspect), image.height)
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        pixels = to_tensor(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
        if rng.random() < 0.5:
            pixels = pixels.flip(2)
        pixels = torch.rot90(pixels, rng.choice((0, 0, 0, 1, 2, 3)), (1, 2))
        return pixels[rng.sample(range(3), 3)] if rng.random() < 0.5 else pixels


def train(steps: int, batch_size: int, peak: float) -> MaskedAutoencoder:
    """Train with the official recipe in small: AdamW, warm-up, half-cycle cosine, mask ratio 0.75, raw pixels."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(**SIZES)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    warm_up = steps // 20

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    crops = DataLoader(Crops(training_photographs(), steps * batch_size), batch_size, num_workers=1)
    started, total = time.monotonic(), 0.0
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


def fill_with_mean(patches: Tensor, hidden: Tensor) -> Tensor:
    """Baseline (a): give every patch `(L, P * P, 3)` the mean colour of the visible pixels."""
    return patches[~hidden].mean(dim=(0, 1)).expand_as(patches)


def fill_bilinearly(patches: Tensor, hidden: Tensor) -> Tensor:
    """Baseline (b): weigh the means of the visible patches bilinearly, then enlarge the grid of means bilinearly.

    A hidden cell of the grid takes the visible cells less than two cells away, with weights that fall linearly in both
    directions; where there are none, the reach grows.
    """
    side = math.isqrt(len(patches))
    cells = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1).reshape(-1, 2)
    away = (cells[:, None] - cells[None, ~hidden]).abs()  # L, L_keep, 2
    means = patches[~hidden].mean(dim=1)  # L_keep, 3
    filled = torch.full((len(patches), 3), float("nan"))
    for reach in range(2, 2 * side):
        weights = (1 - away / reach).clamp(min=0).prod(dim=-1)  # L, L_keep
        new = filled[:, 0].isnan() & (weights.sum(dim=1) > 0)
        filled[new] = (weights @ means / weights.sum(dim=1, keepdim=True))[new]
    filled[~hidden] = means
    grid = filled.T.reshape(1, 3, side, side)
    pixels = interpolate(grid, size=SIZES["img_size"], mode="bilinear", align_corners=False)
    return patchify(pixels, SIZES["patch_size"])[0].reshape(patches.shape)


@torch.no_grad()
def evaluate(model: MaskedAutoencoder, masks: int = 32) -> dict[str, float]:
    """Mean squared error on the hidden patches of the held-out photograph, in normalised pixels, over so many masks."""
    image = Image.open(HELD_OUT).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    size = (SIZES["img_size"], SIZES["img_size"])
    image = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    images = to_tensor(image).unsqueeze(0)
    target = patchify(images, SIZES["patch_size"])[0].unflatten(1, (-1, 3))  # L, P*P, 3
    noise = torch.rand(masks, len(target), generator=torch.Generator().manual_seed(0))
    errors = {"this model": 0.0, "(a) mean of the visible pixels": 0.0, "(b) bilinear from visible patch means": 0.0}
    model.eval()
    for row in noise:
        _, pred, mask = model(images, mask_ratio=MASK_RATIO, noise=row.unsqueeze(0))
        hidden = mask[0].bool()
        fillings = (pred[0].unflatten(1, (-1, 3)), fill_with_mean(target, hidden), fill_bilinearly(target, hidden))
        for name, filling in zip(errors, fillings, strict=True):
            errors[name] += ((filling - target)[hidden] ** 2).mean().item() / masks
    return errors


def main() -> None:
    """Train unless told not to, then evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evaluate", action="store_true", help="do not train: evaluate the file that is there")
    parser.add_argument("--steps", type=int, default=11000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    if options.evaluate:
        model = MaskedAutoencoder(**SIZES)
        model.load_state_dict(read_checkpoint(options.output).state_dict)
    else:
        model = train(options.steps, options.batch_size, options.lr)
        args = argparse.Namespace(norm_pix_loss=False, mask_ratio=MASK_RATIO, input_size=SIZES["img_size"])
        torch.save({"model": model.state_dict(), "args": args}, options.output)
    print(f"mean squared error on hidden patches of {HELD_OUT.name}, normalised pixels, mean of 32 masks")
    for name, error in (errors := evaluate(model)).items():
        change = error / errors["(a) mean of the visible pixels"] - 1
        print(f"  {name:40s} {error:.4f}  {change:+.1%} against (a)")


if __name__ == "__main__":
    main()
