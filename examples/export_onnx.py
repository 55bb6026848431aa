"""Export a model to ONNX, and compare the outputs of onnxruntime with those of PyTorch.

    python examples/export_onnx.py demo/mae-demo mae.onnx
    python examples/export_onnx.py demo/mae-demo encoder.onnx --encoder

The class is the one in the config of the folder or Hub repository:

    MAEModel, MAEBackbone      pixel_values        -> last_hidden_state, pooler_output
    MAEForImageClassification  pixel_values        -> logits
    MAEForPreTraining          pixel_values, noise -> loss (if the mask ratio is not 0), logits, mask, ids_restore

The file is in float32 and accepts any number of images of the model's image size. The patches with the smallest noise
stay visible, as many as the config's mask_ratio leaves. For a custom mask with the same number of masked patches, pass
noise 1 for masked and 0 for visible patches. Weights of more than 1.5 GB are stored in OUT.onnx.data: keep both files
in one folder, and do not rename them.

Requires onnx, onnxscript and onnxruntime.
"""

import argparse
import logging
import math
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError

from mae_hf import MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEModel

CLASSES = {
    "MAEModel": MAEModel,
    "MAEBackbone": MAEModel,
    "MAEForImageClassification": MAEForImageClassification,
    "MAEForPreTraining": MAEForPreTraining,
}
EXACT = ("mask", "ids_restore")
TOLERANCE = 1e-4  # of the other outputs


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Export a model to ONNX and compare the two.")
    parser.add_argument("folder", metavar="FOLDER", help="folder or Hub id of any model of mae_hf")
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("--encoder", action="store_true", help="export only the encoder of a pretraining model")
    parser.add_argument(
        "--opset", type=int, default=20, choices=range(18, 26), metavar="N", help="ONNX opset, 18 to 25 (default: 20)"
    )
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    try:
        export(options.folder, options.out, options.encoder, options.opset)
    except torch.onnx.OnnxExporterError:
        raise  # not the fault of the input
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print("export_onnx:", str(error).strip().splitlines()[0], file=sys.stderr)
        return 1
    return 0


def export(folder, out, encoder, opset):
    """Export a model and compare the file with it; if anything is wrong, write nothing.

    Args:
        folder: Folder or Hub id.
        out: File to write; it must not exist.
        encoder: Export only the encoder of a pretraining model.
        opset: Version of ONNX's operator set.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
        ValueError: If the file cannot be written, the model cannot be exported, or the outputs differ.
    """
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")
    if not out.parent.is_dir():
        raise ValueError(f"no such directory: {out.parent}")
    for path in (out, out.with_name(f"{out.name}.data")):
        if path.exists():
            raise ValueError(f"{path} already exists")
    model = load(folder, encoder)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        staged = Path(beside, out.name)  # of the same name: the file refers to its .data by name
        write(model, staged, opset)
        found = differences(model, staged)
        for name, difference in found.items():
            print(f"{name:18} largest difference from PyTorch {difference:.1e}")
        wrong = [name for name in found if not found[name] <= (0 if name in EXACT else TOLERANCE)]  # true for NaN too
        if wrong:
            raise ValueError(f"onnxruntime differs from PyTorch in {', '.join(wrong)}: nothing is written")
        for path in sorted(Path(beside).iterdir(), reverse=True):  # OUT.onnx.data first: the other file needs it
            path.rename(out.with_name(path.name))


def load(folder, encoder):
    """Load the model in eval mode, with "eager" attention, with which onnxruntime is faster than with "sdpa".

    Raises:
        ValueError: If the folder contains no class of mae_hf, a classifier although `encoder` is set, or damaged
            weights.
    """
    name = (MAEConfig.get_config_dict(folder)[0].get("architectures") or ["no class"])[0]
    if name not in CLASSES:
        raise ValueError(f"{folder} holds {name}, not one of {', '.join(CLASSES)}")
    if encoder and name == "MAEForImageClassification":
        raise ValueError(f"{folder} holds a classifier: --encoder is for pretraining models")
    outputs = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
    try:
        kind = MAEModel if encoder else CLASSES[name]
        return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **outputs)
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} are damaged: {error}") from error


def random_inputs(model, batch):
    """Return random keyword arguments of the model's forward, for so many images."""
    config = model.config
    height, width = (side * config.patch_size for side in config.grid_size)
    inputs = {"pixel_values": torch.randn(batch, config.num_channels, height, width)}
    if isinstance(model, MAEForPreTraining):
        inputs["noise"] = torch.rand(batch, math.prod(config.grid_size))
    return inputs


@torch.no_grad()
def write(model, path, opset):
    """Write the ONNX file of a model."""
    inputs = random_inputs(model, batch=2)
    axes = {"pixel_values": {0: torch.export.Dim("batch")}, "noise": {0: torch.export.Dim.DYNAMIC}}
    with warnings.catch_warnings():
        # the exporter uses a deprecated function of PyTorch, and logs that it works without torchvision
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        torch.onnx.export(
            model,
            kwargs=inputs,
            f=path,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(model(**inputs)),
            dynamic_shapes={name: axes[name] for name in inputs},
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
            opset_version=opset,
            external_data=False,  # unless the weights are too large
            verbose=False,
        )


def stable_sort(self, stable=None, dim=-1, descending=False):
    """Translate the sort by noise, which the exporter cannot. TopK is stable: of equal values the first comes first."""
    from onnxscript import opset18 as op

    length = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
    return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


@torch.no_grad()
def differences(model, path):
    """Return the largest absolute difference of each output, for another batch size than in the export."""
    import onnxruntime

    inputs = random_inputs(model, batch=3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    expected = model(**inputs)
    return {
        output.name: largest_difference(torch.tensor(value), expected[output.name])
        for output, value in zip(session.get_outputs(), found, strict=True)
    }


def largest_difference(found, expected):
    """Return the largest absolute difference of two tensors, infinity if their shapes differ."""
    return (found - expected).abs().max().item() if found.shape == expected.shape else math.inf


if __name__ == "__main__":
    sys.exit(main())
