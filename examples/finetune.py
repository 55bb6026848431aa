"""Fine-tune a classifier from a pretrained folder, or train a linear probe on it, with the official recipes.

    python examples/finetune.py --model ./mae-vit-base --images TRAIN --validation VAL --output_dir OUT --bf16 \
        --per_device_train_batch_size 32 --gradient_accumulation_steps 32
    python examples/finetune.py --linear_probe ...

TRAIN and VAL contain a folder for each class. Settings that are not given follow the official recipe of the model's
size; sizes without an official recipe, presets as well as custom ones, follow that of base. To train on several
devices, start it with `torchrun` or `accelerate launch` instead of `python`: docs/train.md. The same command again
resumes from the last checkpoint.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import torch
from PIL import Image
from pytorch_optimizer import LARS
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, Trainer, set_seed

from augmentation import mix, rand_augment, random_erasing
from images import ImageFolder, crop_and_flip, evaluation_transform, to_tensor
from mae_hf import MAEConfig, MAEForImageClassification
from mae_hf.image_processor import image_processor
from mae_hf.patch_embed import to_pair
from mae_hf.training import layer_decay_groups, seeded
from recipe import Recipe, RecipeTrainer, main, train

# FINETUNE.md in facebookresearch/mae, and the defaults of main_finetune.py and main_linprobe.py. By size, the settings
# that differ between the sizes: a size that is missing here gets those of base.
FINE_TUNING = {
    "base": {"num_train_epochs": 100, "base_learning_rate": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
    "large": {"num_train_epochs": 50, "base_learning_rate": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
    "huge": {"num_train_epochs": 50, "base_learning_rate": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
}
FINE_TUNING_OF_ALL_SIZES = {
    "warmup_epochs": 5,
    "weight_decay": 0.05,
    "min_learning_rate": 1e-6,
    "rand_augment": True,
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.25,
    "smoothing": 0.1,
}
LINEAR_PROBE = {
    "base": {"num_train_epochs": 90},
    "large": {"num_train_epochs": 50},
    "huge": {"num_train_epochs": 50},
}
LINEAR_PROBE_OF_ALL_SIZES = {
    "warmup_epochs": 10,
    "base_learning_rate": 0.1,
    "weight_decay": 0.0,
    "min_learning_rate": 0.0,
    "layer_decay": 1.0,
    "drop_path": 0.0,
    "rand_augment": False,
    "mixup": 0.0,
    "cutmix": 0.0,
    "erasing": 0.0,
    "smoothing": 0.0,
}


def official_recipe(config: MAEConfig, linear_probe: bool) -> dict[str, float | bool]:
    """Return the official settings for a model's size, found by its width; for any other width, those of base."""
    by_size = LINEAR_PROBE if linear_probe else FINE_TUNING
    by_width = {MAEConfig.from_preset(size).hidden_size: settings for size, settings in by_size.items()}
    of_size = by_width.get(config.hidden_size, by_size["base"])
    return (LINEAR_PROBE_OF_ALL_SIZES if linear_probe else FINE_TUNING_OF_ALL_SIZES) | of_size


@dataclass
class FineTuning(Recipe):
    """Fine-tune a classifier, or train a linear probe. By default, settings follow the official recipe of the size."""

    model: str | None = field(default=None, metadata={"help": "Folder or Hub id of a pretrained model."})
    linear_probe: bool = field(default=False, metadata={"help": "Train only the head, on the class token."})
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Epochs: 100, large and huge 50; linear probe: 90, large and huge 50."}
    )
    warmup_epochs: float | None = field(
        default=None,
        metadata={"help": "Epochs over which the learning rate rises from 0: 5; linear probe: 10."},
    )
    base_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate for an effective batch of 256: 5e-4, large and huge 1e-3; linear probe: 0.1."},
    )
    min_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate at the end of the cosine: 1e-6; linear probe: 0."}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "Weight decay: 0.05; linear probe: 0."})
    layer_decay: float | None = field(
        default=None,
        metadata={"help": "Layer-wise decay of the learning rate: 0.65, large and huge 0.75; linear probe: 1 (none)."},
    )
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Half a cosine after the warmup."})
    drop_path: float | None = field(
        default=None,
        metadata={"help": "Stochastic depth rate of the last block: 0.1, large 0.2, huge 0.3; linear probe: 0."},
    )
    mixup: float | None = field(default=None, metadata={"help": "Alpha of mixup: 0.8; linear probe: 0 (none)."})
    cutmix: float | None = field(default=None, metadata={"help": "Alpha of cutmix: 1.0; linear probe: 0 (none)."})
    erasing: float | None = field(
        default=None, metadata={"help": "Probability of random erasing: 0.25; linear probe: 0."}
    )
    smoothing: float | None = field(default=None, metadata={"help": "Label smoothing: 0.1; linear probe: 0."})
    rand_augment: bool | None = field(
        default=None, metadata={"help": "RandAugment, rand-m9-mstd0.5-inc1: true; linear probe: false."}
    )
    min_crop: float = field(default=0.08, metadata={"help": "Minimum area of a random crop, as a fraction."})

    def __post_init__(self):
        if self.model is None:
            raise ValueError("--model is missing: folder or Hub id of a pretrained model")
        for name, value in official_recipe(MAEConfig.from_pretrained(self.model), self.linear_probe).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr": self.min_learning_rate}
        super().__post_init__()
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate:g}")


class Mixing:
    """Collate samples into a batch; in training, mix the images and smooth the labels.

    The random numbers of a batch depend on the seed, and on the epoch and index of its first sample.

    Args:
        recipe: Seed, mixup, cutmix and label smoothing.
        num_labels: Number of classes.
    """

    def __init__(self, recipe: FineTuning, num_labels: int) -> None:
        self.recipe = recipe
        self.num_labels = num_labels

    def __call__(self, samples: Sequence[dict]) -> dict[str, Tensor]:
        pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
        labels = torch.tensor([sample["labels"] for sample in samples])
        epoch = samples[0]["epoch"]
        if epoch is not None:
            rng = seeded(self.recipe.seed, "mix", epoch, samples[0]["index"])
            mixing = {name: getattr(self.recipe, name) for name in ("mixup", "cutmix", "smoothing")}
            pixel_values, labels = mix(pixel_values, labels, self.num_labels, rng, **mixing)
        return {"pixel_values": pixel_values, "labels": labels}


class FineTuner(RecipeTrainer):
    """`Trainer` with the optimizer of the recipe, and cross entropy with soft labels.

    The model's own loss would treat soft labels as multi-label targets.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.args.linear_probe and self.is_fsdp_enabled:
            raise ValueError(
                "--linear_probe does not work with --fsdp: LARS needs whole weights, and the head is small"
            )
        self.model_accepts_loss_kwargs = False  # Trainer divides the mean loss of a batch by the accumulation steps

    def create_optimizer(self, model=None):
        self.optimizer = self.optimizer or make_optimizer(self.args, model or self.model)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["pixel_values"])
        loss = cross_entropy(outputs.logits.float(), inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def fine_tuning_transform(image: Image.Image, rng: Random, size: tuple[int, int], recipe: FineTuning) -> Tensor:
    """Apply a random resized crop, a flip and, if the recipe has them, RandAugment and random erasing.

    Returns:
        `(3, H, W)`.
    """
    image = crop_and_flip(image, rng, size, recipe.min_crop, recipe.flip)
    if recipe.rand_augment:
        image = rand_augment(image, rng)
    return random_erasing(to_tensor(image), rng, recipe.erasing)


def make_model(recipe: FineTuning, classes: Sequence[str]) -> MAEForImageClassification:
    """Load the pretrained encoder into a classifier; its head is initialised unless it fits the classes."""
    set_seed(recipe.seed)
    return MAEForImageClassification.from_pretrained(
        recipe.model,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        drop_path_rate=recipe.drop_path,
        pooling="cls" if recipe.linear_probe else "mean",
        linear_probe=recipe.linear_probe,
        ignore_mismatched_sizes=True,  # initialises the head if the number of classes differs
    )


def make_optimizer(recipe: FineTuning, model: MAEForImageClassification) -> torch.optim.Optimizer:
    """Return LARS for a linear probe, like the official code, otherwise `--optim` (AdamW) with layer-wise decay.

    With weight decay, which the official linear probe does not use, this LARS differs from the official one.
    """
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.linear_probe:
        return LARS(model.head.parameters(), lr=rate, weight_decay=decay, momentum=0.9)
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(recipe, model)
    return optimizer(layer_decay_groups(model, rate, decay, recipe.layer_decay), **settings)


def accuracies(predictions: EvalPrediction) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent; the predictions are the five most likely classes, in order."""
    hits = predictions.predictions == predictions.label_ids[:, None]  # N 5
    return {"top1": 100 * hits[:, 0].mean().item(), "top5": 100 * hits.any(axis=1).mean().item()}


def finetune(recipe: FineTuning) -> None:
    """Train a classifier on `recipe.images`, and evaluate it on `recipe.validation`.

    Raises:
        ValueError: If the images have no class folders, or the two folders have different classes.
    """
    size = to_pair(MAEConfig.from_pretrained(recipe.model).image_size)
    transform = partial(fine_tuning_transform, size=size, recipe=recipe)
    images = ImageFolder(recipe.images, transform, recipe.seed, train=True)
    transform = partial(evaluation_transform, size=size)
    validation = ImageFolder(recipe.validation, transform) if recipe.validation else None
    if not images.classes:
        raise ValueError(f"{recipe.images} must contain a folder for each class, and no images outside of them")
    if validation and validation.classes != images.classes:
        raise ValueError(f"{recipe.validation} and {recipe.images} have different classes")
    model = make_model(recipe, images.classes)
    trainer = FineTuner(
        model,
        recipe,
        Mixing(recipe, len(images.classes)),
        images,
        validation,
        processing_class=image_processor(model.config),
        compute_metrics=accuracies,
        preprocess_logits_for_metrics=lambda logits, labels: logits.topk(min(5, logits.shape[1])).indices,
    )
    train(trainer)


if __name__ == "__main__":
    sys.exit(main(FineTuning, finetune))
