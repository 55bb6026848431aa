"""Pretrain, fine-tune and linear-probe on small data sets that come with two packages of PyPI, with figures.

    python examples/small_runs.py                      # everything: about ten minutes on two cores
    python examples/small_runs.py --only digits

* photographs: pretrain on crops of seven photographs (scikit-image, scikit-learn), and reconstruct another one.
* digits: pretrain on scikit-learn's digits, then fine-tune and train a linear probe, compared with a linear model on
  pixels.

The runs use examples/pretrain.py and examples/finetune.py, in the folder --work; the figures go to --output.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from demo.train import HELD_OUT, training_photographs
from matplotlib import pyplot
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).resolve().parent
SMALL = {
    "patch_size": 4,
    "image_size": 48,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 256,
}
DIGITS = SMALL | {"patch_size": 8, "image_size": 32}
EVERY_RUN = ["--per_device_train_batch_size", "64", "--disable_tqdm", "true"]
EVERY_RUN += ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]
NO_AUGMENTATION = ["--rand_augment", "false", "--mixup", "0", "--cutmix", "0", "--erasing", "0", "--smoothing", "0"]
UPRIGHT = ["--flip", "0", "--min_crop", "0.6"]  # a flipped digit is not a digit


def run(script: str, output: Path, *arguments: str) -> list[dict]:
    """Run an example and return its log entries."""
    command = [sys.executable, str(HERE / script), "--output_dir", str(output), *EVERY_RUN, *arguments]
    print(f"python examples/{script} {' '.join(command[2:])}", flush=True)
    few = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}  # more threads or GPUs slow down such a small model
    subprocess.run(command, check=True, env=few | os.environ)
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def curve(log: list[dict], field: str) -> tuple[list[float], list[float]]:
    """Return the epochs and the values of one field of the log."""
    return [line["epoch"] for line in log if field in line], [line[field] for line in log if field in line]


def photographs(work: Path, output: Path, epochs: int = 200) -> dict[str, float]:
    """Pretrain on crops of photographs, and draw the loss and reconstructions of another photograph.

    Args:
        work: Folder of data and runs.
        output: Folder of the figures.
        epochs: Length of the run.

    Returns:
        Losses at the start and at the end.
    """
    images = work / "images"
    held_out = work / "held-out"
    for folder in (images, held_out):
        folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(training_photographs()):
        cut(image, images, str(number))
    cut(Image.open(HELD_OUT), held_out, HELD_OUT.stem)
    data = ["--images", str(images), "--validation", str(held_out), "--pictures", str(HELD_OUT)]
    schedule = ["--num_train_epochs", str(epochs), "--warmup_epochs", str(epochs // 20), "--learning_rate", "1e-3"]
    watched = ["--logging_steps", "50", "--eval_strategy", "steps", "--eval_steps", "50"]
    watched += ["--picture_steps", str(epochs // 6), "--save_strategy", "no"]
    log = run("pretrain.py", work / "photographs", "--config", json.dumps(SMALL), *data, *schedule, *watched)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(*curve(log, "loss"), label="crops of seven photographs")
    axes.plot(*curve(log, "eval_loss"), label="crops of a held-out photograph")
    axes.set(xlabel="epoch", ylabel="mean squared error on masked patches", yscale="log")
    axes.legend()
    figure.savefig(output / "photographs.png", dpi=100, bbox_inches="tight")
    saved = sorted((work / "photographs" / "pictures").glob("*.png"))
    stack([saved[0], saved[2], saved[-1]]).save(output / "reconstruction.png")
    _, losses = curve(log, "loss")
    _, held_out_losses = curve(log, "eval_loss")
    return {
        "loss, mean of the first 50 steps": losses[0],
        "loss, mean of the last 50 steps": losses[-1],
        "loss of the held-out photograph, at the start": held_out_losses[0],
        "loss of the held-out photograph, at the end": held_out_losses[-1],
    }


def cut(image: Image.Image, folder: Path, name: str) -> None:
    """Write crops of 128 x 128 pixels with a stride of 64."""
    for left in range(0, image.width - 127, 64):
        for top in range(0, image.height - 127, 64):
            image.crop((left, top, left + 128, top + 128)).save(folder / f"{name}-{left:04}-{top:04}.png")


def stack(paths: list[Path]) -> Image.Image:
    """Stack images of one size vertically."""
    images = [Image.open(path) for path in paths]
    stacked = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white")
    for number, image in enumerate(images):
        stacked.paste(image, (0, number * image.height))
    return stacked


def write_digits(folder: Path) -> float:
    """Write a folder for each class in `train` and `test`, which gets every fourth digit.

    Returns:
        Top-1 accuracy of logistic regression on the pixels, in percent.
    """
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("test" if number % 4 == 3 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        digit = Image.fromarray((image * 255 / 16).round().astype("uint8"))
        digit.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{number:04}.png")
    test = [number % 4 == 3 for number in range(len(digits.target))]
    train = [not held_out for held_out in test]
    linear = LogisticRegression(max_iter=10000).fit(digits.data[train] / 16, digits.target[train])
    return 100 * linear.score(digits.data[test] / 16, digits.target[test])


def digits(work: Path, output: Path) -> dict[str, float]:
    """Pretrain on digits without labels, then fine-tune and train a linear probe, and draw their accuracies.

    Args:
        work: Folder of data and runs.
        output: Folder of the figure.

    Returns:
        Top-1 accuracies in percent.
    """
    linear = write_digits(work / "digits")
    train = str(work / "digits" / "train")
    test = str(work / "digits" / "test")
    schedule = ["--num_train_epochs", "100", "--warmup_epochs", "5", "--learning_rate", "1e-3", "--save_strategy", "no"]
    data = ["--config", json.dumps(DIGITS), "--images", train]
    run("pretrain.py", work / "digits-pretrained", *data, *UPRIGHT, *schedule)

    data = ["--model", str(work / "digits-pretrained"), "--images", train, "--validation", test]
    schedule = ["--num_train_epochs", "20", "--logging_steps", "10", "--save_strategy", "no"]
    tuning = ["--learning_rate", "1e-3", "--drop_path", "0", *NO_AUGMENTATION]
    probing = ["--linear_probe", "--base_learning_rate", "10"]
    tuned = run("finetune.py", work / "digits-finetuned", *data, *UPRIGHT, *schedule, *tuning)
    probed = run("finetune.py", work / "digits-probe", *data, *UPRIGHT, *schedule, *probing)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(*curve(tuned, "eval_top1"), label="fine-tuned")
    axes.plot(*curve(probed, "eval_top1"), label="linear probe on the frozen encoder")
    axes.axhline(linear, color="grey", linestyle="--", label="logistic regression on pixels")
    axes.set(xlabel="epoch", ylabel="top-1 accuracy on the test digits, %")
    axes.legend()
    figure.savefig(output / "digits.png", dpi=100, bbox_inches="tight")
    return {
        "top-1 on digits, chance": 10.0,
        "top-1 on digits, logistic regression on pixels": linear,
        "top-1 on digits, fine-tuned": curve(tuned, "eval_top1")[1][-1],
        "top-1 on digits, linear probe": curve(probed, "eval_top1")[1][-1],
    }


PARTS = {"photographs": photographs, "digits": digits}


def main(arguments: list[str] | None = None) -> None:
    """Run with command line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PARTS, help="run only this part")
    parser.add_argument("--work", type=Path, default=Path("runs"), metavar="DIR", help="folder of data and runs")
    parser.add_argument("--output", type=Path, default=HERE / "results", metavar="DIR", help="folder of figures")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if options.only in (None, name):
            for what, value in part(options.work, options.output).items():
                print(f"| {what} | {value:.4g} |")


if __name__ == "__main__":
    main()
