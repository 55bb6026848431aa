"""Evaluate a classifier on a folder of images: top-1 and top-5 accuracy, with the official transform.

    python examples/evaluate.py ./mae-finetuned-vit-base imagenet/val

IMAGES contains a folder for each class. If every folder has the name of one of the model's labels, folders and labels
are matched by name. If none has, and there are as many folders as labels, they are matched in order: the alphabetical
order of the folders of ImageNet is that of the labels in the official scripts.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial

import torch
import transformers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from images import ImageFolder, evaluation_transform
from mae_hf import MAEConfig, MAEForImageClassification
from mae_hf.patch_embed import to_pair
from terminal import log_to_terminal, one_line

logger = logging.getLogger("examples.evaluate")


def main(arguments: list[str] | None = None) -> int:
    """Run with command line arguments; returns the exit status."""
    parser = argparse.ArgumentParser(description="Top-1 and top-5 accuracy on a folder of images.")
    parser.add_argument("folder", metavar="FOLDER", help="folder or Hub id of a classifier of mae_hf")
    parser.add_argument("images", metavar="IMAGES", help="folder with a folder of images for each class")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch")
    parser.add_argument("--workers", type=int, default=min(10, os.cpu_count() or 1), metavar="N", help="loader workers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    log_to_terminal()
    try:
        top1, top5, loss, count = evaluate(options)
    except (OSError, RuntimeError, ValueError) as error:
        print("evaluate:", one_line(error), file=sys.stderr)
        return 1
    print(f"top-1 {top1:.3f} %  top-5 {top5:.3f} %  loss {loss:.3f}  of {count} images")
    return 0


@torch.no_grad()
def evaluate(options: argparse.Namespace) -> tuple[float, float, float, int]:
    """Return top-1 and top-5 accuracy in percent, the mean loss, and the number of images."""
    model = load(options.folder).to(options.device)
    images = ImageFolder(options.images, partial(evaluation_transform, size=to_pair(model.config.image_size)))
    classes = match(images.classes, model.config).to(options.device)
    loader = DataLoader(images, options.batch_size, num_workers=options.workers, collate_fn=collate)
    top1 = top5 = loss = count = 0
    for pixel_values, labels in (progress := tqdm(loader)):
        labels = classes[labels.to(options.device)]
        with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=options.bf16):
            logits = model(pixel_values.to(options.device)).logits.float()  # B num_labels
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # B 5
        count += len(labels)
        top1 += hits[:, 0].sum().item()
        top5 += hits.sum().item()
        loss += cross_entropy(logits, labels, reduction="sum").item()
        progress.set_postfix_str(f"top-1 {100 * top1 / count:.3f} %")
    return 100 * top1 / count, 100 * top5 / count, loss / count, count


def load(folder: str) -> MAEForImageClassification:
    """Load the classifier in eval mode.

    Raises:
        ValueError: If the folder contains a model of another class: the head would be randomly initialised.
    """
    found = (MAEConfig.from_pretrained(folder).architectures or ["no class"])[0]
    if found != "MAEForImageClassification":
        raise ValueError(f"{folder} holds {found}: evaluation needs a classifier, such as examples/finetune.py trains")
    return MAEForImageClassification.from_pretrained(folder)


def match(names: Sequence[str], config: MAEConfig) -> torch.Tensor:
    """Return the index of the model's label for each class of the images.

    Args:
        names: Class folders, in order.
        config: Config of the model, with its labels.

    Raises:
        ValueError: If there are no class folders, or they cannot be matched to the labels.
    """
    if not names:
        raise ValueError("the images are not in one folder per class")
    unknown = [name for name in names if name not in config.label2id]
    if not unknown:
        return torch.tensor([config.label2id[name] for name in names])
    if len(unknown) < len(names) or len(names) != config.num_labels:
        raise ValueError(
            f"the images have {len(names)} classes, the model {config.num_labels}, and {len(unknown)} of the folders, "
            f"such as {unknown[0]!r}, do not have the name of a label"
        )
    logger.info(
        "no folder has the name of a label: they are matched in order, %s as %s ...", names[0], config.id2label[0]
    )
    return torch.arange(len(names))


def collate(samples: Sequence[dict]) -> list[torch.Tensor]:
    """Return images `(B, 3, H, W)` and labels `(B,)`."""
    return default_collate([(sample["pixel_values"], sample["labels"]) for sample in samples])


if __name__ == "__main__":
    sys.exit(main())
