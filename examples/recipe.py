"""Shared by pretraining and fine-tuning: the official settings as `TrainingArguments`, resuming, and error messages."""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from terminal import log_to_terminal, one_line

logger = logging.getLogger("examples.recipe")


@dataclass
class Recipe(TrainingArguments):
    """transformers' `TrainingArguments`, some with other defaults, and the arguments that the recipes add.

    The learning rate is `base_learning_rate` * effective batch / 256, unless `learning_rate` is given. The effective
    batch is `per_device_train_batch_size` * `gradient_accumulation_steps` * number of processes.
    """

    images: str | None = field(default=None, metadata={"help": "Folder of images to train on."})
    validation: str | None = field(default=None, metadata={"help": "Folder of images to evaluate on."})
    base_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate for an effective batch of 256."})
    learning_rate: float | None = field(default=None, metadata={"help": "Learning rate; overrides base_learning_rate."})
    warmup_epochs: float = field(default=0, metadata={"help": "Epochs over which the learning rate rises from 0."})
    min_crop: float = field(default=0.2, metadata={"help": "Minimum area of a random crop, as a fraction."})
    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 disables it."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Half a cosine after the warmup."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is random."})
    dataloader_num_workers: int = field(default=min(10, os.cpu_count() or 1), metadata={"help": "Workers per process."})
    dataloader_pin_memory: bool = field(default=torch.accelerator.is_available(), metadata={"help": "Pin memory."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, smaller batch."})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": "Not needed: no parameter is unused."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images per device in evaluation."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps or no."})
    save_total_limit: int = field(default=2, metadata={"help": "Number of checkpoints to keep."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between two log entries."})
    hub_strategy: str = field(default="end", metadata={"help": "When --push_to_hub pushes: end, every_save ..."})
    eval_on_start: bool = field(default=True, metadata={"help": "Evaluate before training: finds unreadable images."})

    def __post_init__(self):
        if self.images is None:
            raise ValueError("--images is missing: the folder of images to train on")
        if not self.output_dir:
            raise ValueError("--output_dir is missing: the folder for checkpoints and model")
        if not 0 <= self.warmup_epochs < self.num_train_epochs:
            raise ValueError(
                f"warmup_epochs must be at least 0 and less than num_train_epochs, {self.num_train_epochs:g}, "
                f"got {self.warmup_epochs:g}"
            )
        if self.max_steps <= 0 and self.num_train_epochs % 1:
            raise ValueError(
                f"num_train_epochs must be a whole number, got {self.num_train_epochs:g}: to stop within an epoch, use "
                f"--max_steps"
            )
        if self.eval_strategy == "no" and self.validation:
            self.eval_strategy = "epoch"
        self.eval_on_start &= self.validation is not None
        self.remove_unused_columns = False  # the collators need the epoch and index of each sample
        self.train_sampling_strategy = "sequential"  # ImageFolder shuffles itself
        self.logging_nan_inf_filter = False  # StopAtNaN has to see them
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs in one process: start one process per GPU, torchrun --nproc-per-node {self.n_gpu} "
                f"..., or select one GPU, CUDA_VISIBLE_DEVICES=0 python ..."
            )
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * self.effective_batch / 256
        self.warmup_steps = self.warmup_steps or self.warmup_epochs / self.num_train_epochs  # a fraction of all steps

    @property
    def effective_batch(self) -> int:
        """Number of images in one optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size


class RecipeTrainer(Trainer):
    """`Trainer` with what the recipes need: NaN checks, whole checkpoints, complete evaluation, working FSDP."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(StopAtNaN())
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.activation_checkpointing:
            # accelerate's own recomputes activations with other dropped paths, which gives wrong gradients
            plugin.activation_checkpointing = False
            self.args.activation_checkpointing = True
        if plugin is not None and plugin.fsdp_version == 2 and self.args.bf16:
            # accelerate's own policy also casts noise and pixels to bfloat16: the noise would have ties
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )

    def _save_rng_state(self, output_dir):
        """Save the RNG state of every process before the first one writes the file that completes a checkpoint."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def get_eval_dataloader(self, eval_dataset=None):
        """Ignore `dataloader_drop_last`, which is for training: every image is evaluated."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last


class StopAtNaN(TrainerCallback):
    """Stop training when the loss or a weight is NaN or infinite, before such weights are saved.

    Every checkpoint gets a log entry: the loss is checked when it is logged.
    """

    def on_step_end(self, args, state, control, model, **kwargs):
        if control.should_save:
            control.should_log = True  # checks the losses since the last log entry
            self._check("a weight", largest_weight(model), args, state)

    on_epoch_end = on_step_end

    def on_log(self, args, state, control, logs, **kwargs):
        self._check("the loss", logs.get("loss", 0.0), args, state)
        self._check("the loss", logs.get("train_loss", 0.0), args, state)

    def on_train_end(self, args, state, control, model, **kwargs):
        self._check("a weight", largest_weight(model), args, state)

    def _check(self, what, value, args, state):
        if not math.isfinite(value):
            raise ValueError(
                f"{what} is {value} at step {state.global_step}, training stops: lower the learning rate, or train "
                f"without --fp16 or --bf16. The last checkpoint is {last_checkpoint(args.output_dir) or 'none'}"
            )


def largest_weight(model: nn.Module) -> float:
    """Return the largest absolute value of a weight, NaN if there is one; of a sharded model, of the local shards."""
    weights = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.stack([w.detach().abs().amax() for w in weights if w.numel()]).amax().item()


def last_checkpoint(output_dir: str) -> str | None:
    """Return the last complete checkpoint, or None: the trainer state is the last file that is written of each."""
    steps = {}
    for file in Path(output_dir).glob(f"checkpoint-*/{TRAINER_STATE_NAME}"):
        with contextlib.suppress(ValueError):  # partly written
            steps[str(file.parent)] = TrainerState.load_from_json(file).global_step
    return max(steps, key=steps.__getitem__, default=None)


def checkpoint_of_all(recipe: Recipe) -> str | None:
    """Return the checkpoint to resume from, the same in all processes, or None.

    Raises:
        ValueError: If a process does not find it.
    """
    (checkpoint,) = broadcast_object_list([recipe.resume_from_checkpoint or last_checkpoint(recipe.output_dir)])
    if checkpoint and not os.path.isdir(checkpoint):
        raise ValueError(
            f"process {recipe.process_index} does not find {checkpoint}: all processes need the same --output_dir"
        )
    return checkpoint


def check_batch(recipe: Recipe, images: int) -> None:
    """Raise `ValueError` if there are fewer images than one batch for each process."""
    needed = recipe.train_batch_size * recipe.world_size
    if images < needed:
        raise ValueError(
            f"{images} images are fewer than the {needed} of one batch for each process ({recipe.world_size} x "
            f"{recipe.train_batch_size}): lower --per_device_train_batch_size, or use fewer processes"
        )


def train(trainer: RecipeTrainer) -> None:
    """Train, resuming from the last complete checkpoint in the output folder if there is one; save the model there."""
    recipe = trainer.args
    check_batch(recipe, len(trainer.train_dataset))
    checkpoint = checkpoint_of_all(recipe)
    if checkpoint and recipe.max_steps > 0:
        done = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).global_step
        if done >= recipe.max_steps:
            logger.info("already trained for %d steps: the model is in %s", recipe.max_steps, checkpoint)
            return
    logger.info(
        "%d images, %s; effective batch %d (%d images x %d accumulated x %d processes), learning rate %.3g",
        len(trainer.train_dataset),
        f"resumed from {checkpoint}" if checkpoint else "from the start",
        recipe.effective_batch,
        recipe.train_batch_size,
        recipe.gradient_accumulation_steps,
        recipe.world_size,
        recipe.learning_rate,
    )
    torch.manual_seed(recipe.seed + recipe.process_index)  # drop path must differ between processes
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    if trainer.is_fsdp_enabled:  # otherwise Trainer saves no model if checkpoints are sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()  # with --push_to_hub, also pushes it


def main(recipe_class: type[Recipe], run: Callable[[Recipe], None], arguments: list[str] | None = None) -> int:
    """Run with command line arguments.

    Args:
        recipe_class: Dataclass of the arguments.
        run: Trains by a recipe.
        arguments: Command line; that of the process if None.

    Returns:
        The exit status: 0 on success; 1 if the arguments or the data are invalid, with one line on standard error or,
        with `--log_level debug`, the traceback.
    """
    transformers.utils.logging.disable_progress_bar()  # for file operations; the one for training steps stays
    log_to_terminal()
    debug = False
    try:
        (recipe,) = HfArgumentParser(recipe_class, description=recipe_class.__doc__).parse_args_into_dataclasses(
            arguments
        )
        debug = recipe.log_level == "debug"
        run(recipe)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except (OSError, ValueError) as error:
        if debug:
            raise
        print(f"{Path(sys.argv[0]).stem}: {one_line(error)}", file=sys.stderr)
        return 1
    return 0
