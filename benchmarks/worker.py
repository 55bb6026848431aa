"""One side of a comparison in a process of its own: it makes a model, and takes a turn whenever it is told to.

    python -m benchmarks.worker '{"library": "mae_hf", "task": "step", "preset": "base", "attention": "sdpa"}'

It writes a line when it is ready. Every line on standard input then asks for a turn; the answer is a line of JSON with
the seconds that it took and the peak of memory so far. Processes that take turns have heaps, caches and compiled
kernels of their own.
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
# ViTMAE has no classifier; that of ViT has the same encoder
TRANSFORMERS = {"step": ViTMAEForPreTraining, "features": ViTMAEModel, "classifier": ViTForImageClassification}
LABELS = 1000


@dataclass(frozen=True)
class Job:
    """What a process does in each of its turns.

    Attributes:
        library: "mae_hf", "transformers", or "matmul" for nothing but the matrix products of mae_hf's linear layers.
        task: "step", forward and backward of pretraining; "features", forward of the encoder without gradients;
            "classifier", forward and backward of a classifier; "load", `from_pretrained` of a pretraining model.
        preset: "base", "large" or "huge".
        batch: Images.
        dtype: "float32", or "bfloat16" by autocast.
        attention: Name of the attention implementation.
        compiled: Use `torch.compile`.
        image_size: Side of the images in pixels.
        mask_ratio: Share of patches that a "step" hides, and "features" if it is not 0.
        device: "cpu" or "cuda".
        folder: Where "load" finds the weights.
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
        """Make the library's model for the task, with its own random weights."""
        config = MAEConfig.from_preset(
            self.preset, image_size=self.image_size, mask_ratio=self.mask_ratio, num_labels=LABELS
        )
        if self.library != "transformers":
            config._attn_implementation = self.attention
            return MAE_HF[self.task](config).train(self.trains)
        theirs: Any = config_to_vit_mae(config)
        if self.task == "classifier":
            theirs = ViTConfig.from_dict(config.to_dict() | {"model_type": "vit"})  # the fields have the same names
        theirs._attn_implementation = self.attention
        return TRANSFORMERS[self.task](theirs).train(self.trains)

    def inputs(self) -> dict[str, Any]:
        """Images, and what else the model's forward takes."""
        made: dict[str, Any] = {"pixel_values": torch.randn(self.batch, 3, self.image_size, self.image_size)}
        if self.task == "classifier":
            made["labels"] = torch.arange(self.batch)
        if self.library != "transformers" and self.task == "features" and self.mask_ratio:
            made["mask_ratio"] = self.mask_ratio  # transformers has it in its configuration only
        return made

    def products(self) -> list[tuple[int, int, int]]:
        """Sizes of the matrix products in the forward pass of the linear layers: rows, inputs and outputs."""
        found: list[tuple[int, int, int]] = []

        def note(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if isinstance(layer, nn.Linear):
                found.append((output.numel() // layer.out_features, layer.in_features, layer.out_features))

        with torch.device("meta"), nn.modules.module.register_module_forward_hook(note):
            self.make_model()(**self.inputs())
        return found


def model_turn(job: Job) -> Callable[[], None]:
    """Make the model, and return what runs it once."""
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
    """Return what computes the products of `job.products()`, and those of their gradients if it trains."""
    dtype, products = getattr(torch, job.dtype), job.products()
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
    """Return what loads the weights once."""
    model = (MAE_HF if job.library == "mae_hf" else TRANSFORMERS)["step"]
    return lambda: model.from_pretrained(job.folder)


def make_turn(job: Job) -> Callable[[], object]:
    """Return what a job does in a turn."""
    if job.task == "load":
        return load_turn(job)
    return matmul_turn(job) if job.library == "matmul" else model_turn(job)


def peak_memory(device: str) -> int:
    """Largest memory so far, in bytes: resident, of the process with its libraries, or of the tensors on a GPU."""
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
    torch.cuda.empty_cache()  # so that another process can fill the card; here and below, nothing on a CPU
    print("ready", flush=True)
    for _ in sys.stdin:
        if job.device == "cuda":
            finished_turn()  # the other process has had the card since
        start = time.perf_counter()
        finished_turn()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_memory(job.device)}), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
