"""A process of a comparison: it creates a model and runs it once per turn.

    python -m benchmarks.worker '{"library": "mae_hf", "task": "step", "preset": "base", "attention": "sdpa"}'

It writes a line when it is ready. Then every line on standard input requests a turn, and the answer is a line of JSON
with the seconds that the turn took and the peak of memory so far. Every process has its own heap, caches and compiled
kernels.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining, ViTMAEModel
from transformers.utils import logging

from mae_hf import MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.vit_mae import config_to_vit_mae

MAE_HF = {"step": MAEForPreTraining, "features": MAEModel, "classifier": MAEForImageClassification}
# ViTMAE has no classifier; ViT's has the same encoder
TRANSFORMERS = {"step": ViTMAEForPreTraining, "features": ViTMAEModel, "classifier": ViTForImageClassification}
LABELS = 1000


@dataclass(frozen=True)
class Job:
    """What a process does in each of its turns.

    Attributes:
        library: "mae_hf", "transformers", or "matmul" for only the matrix products of mae_hf's linear layers.
        task: "step", forward and backward of pretraining; "features", forward of the encoder without gradients;
            "classifier", forward and backward of a classifier; "load", `from_pretrained` of a pretraining model.
        preset: A size of `PRESETS`.
        batch: Number of images.
        dtype: "float32", or "bfloat16" by autocast.
        attention: Name of the attention implementation.
        compiled: Use `torch.compile`.
        image_size: Side of the images in pixels.
        mask_ratio: Fraction of patches that a "step" masks, in [0, 1); 0 for "features" of whole images.
        device: "cpu" or "cuda".
        folder: Folder of the weights that "load" loads.
    """

    library: str = "mae_hf"
    task: str = "step"
    preset: str = "base"
    batch: int = 8
    dtype: str = "float32"
    attention: str = "sdpa"
    compiled: bool = False
    image_size: int = 224
    mask_ratio: float = 0.75
    device: str = "cpu"
    folder: str = ""

    @property
    def trains(self) -> bool:
        """Whether a turn has a backward pass."""
        return self.task in ("step", "classifier")

    def make_model(self) -> nn.Module:
        """Create the library's model for the task, randomly initialised."""
        config = MAEConfig.from_preset(
            self.preset, image_size=self.image_size, mask_ratio=self.mask_ratio, num_labels=LABELS
        )
        if self.library != "transformers":
            config._attn_implementation = self.attention
            return MAE_HF[self.task](config).train(self.trains)
        theirs: Any = config_to_vit_mae(config)
        if self.task == "classifier":
            theirs = ViTConfig.from_dict(config.to_dict() | {"model_type": "vit"})  # its fields have the same names
        theirs._attn_implementation = self.attention
        return TRANSFORMERS[self.task](theirs).train(self.trains)

    def inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward."""
        made: dict[str, Any] = {"pixel_values": torch.randn(self.batch, 3, self.image_size, self.image_size)}
        if self.task == "classifier":
            made["labels"] = torch.arange(self.batch)
        if self.library != "transformers" and self.task == "features" and self.mask_ratio:
            made["mask_ratio"] = self.mask_ratio  # transformers only has it in its config
        return made

    def products(self) -> list[tuple[int, int, int]]:
        """Return rows, inputs and outputs of the matrix product of each linear layer in a forward pass."""
        found: list[tuple[int, int, int]] = []

        def note(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if isinstance(layer, nn.Linear):
                found.append((output.numel() // layer.out_features, layer.in_features, layer.out_features))

        with torch.device("meta"), nn.modules.module.register_module_forward_hook(note):
            self.make_model()(**self.inputs())
        return found


def model_turn(job: Job) -> Callable[[], None]:
    """Create the model, and return a function that runs it once."""
    model = job.make_model().to(job.device)
    inputs = {name: x.to(job.device) if isinstance(x, torch.Tensor) else x for name, x in job.inputs().items()}
    run = torch.compile(model) if job.compiled else model

    def turn() -> None:
        with (
            torch.autocast(job.device, torch.bfloat16, enabled=job.dtype == "bfloat16"),
            torch.set_grad_enabled(job.trains),
        ):
            out = run(**inputs)
        if job.trains:
            out.loss.backward()
            model.zero_grad()

    return turn


def matmul_turn(job: Job) -> Callable[[], None]:
    """Return a function that computes the products of `job.products()`, and those of their gradients if it trains."""
    dtype = getattr(torch, job.dtype)
    products = job.products()
    operands = {
        (rows, inputs, outputs): (
            torch.randn(rows, inputs, dtype=dtype, device=job.device),
            torch.randn(outputs, inputs, dtype=dtype, device=job.device),
            torch.randn(rows, outputs, dtype=dtype, device=job.device),
        )
        for rows, inputs, outputs in set(products)
    }

    def turn() -> None:
        for sizes in products:
            x, weight, grad = operands[sizes]
            x @ weight.T
            if job.trains:
                grad @ weight
                grad.T @ x

    return turn


def load_turn(job: Job) -> Callable[[], object]:
    """Return a function that loads the weights once."""
    model = (MAE_HF if job.library == "mae_hf" else TRANSFORMERS)["step"]
    return lambda: model.from_pretrained(job.folder)


def make_turn(job: Job) -> Callable[[], object]:
    """Return a function that runs the job once."""
    if job.task == "load":
        return load_turn(job)
    return matmul_turn(job) if job.library == "matmul" else model_turn(job)


def peak_memory(device: str) -> int:
    """Return the peak of memory so far in bytes: on a CPU, resident memory of the process; on a GPU, of its tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Take turns until standard input ends."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    job = Job(**json.loads(sys.argv[1]))
    turn = make_turn(job)

    def finished_turn() -> None:
        turn()
        if job.device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3 if job.compiled else 1):
        finished_turn()
    torch.cuda.empty_cache()  # so that the next process can use the memory; no effect on a CPU
    print("ready", flush=True)
    for _ in sys.stdin:
        if job.device == "cuda":
            finished_turn()  # warm up again: the other process has used the GPU since
        start = time.perf_counter()
        finished_turn()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_memory(job.device)}), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
