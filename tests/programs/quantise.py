"""Load models quantised, save them and compare them with the originals: `quantise.py TORCH_FILE METHOD FOLDER OUT`.

FOLDER has a folder for each class of models, of its name. OUT gets the quantised models under the same names, each
with a `.json` file: the relative error, whether the saved model gives the same numbers (null where it cannot be loaded
again), and the classes of the quantised weights.
"""

import json
import sys
from pathlib import Path

import torch

import mae_hf


def quantisation(method):
    if method == "torchao int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["head"])
    from transformers import BitsAndBytesConfig

    bits = {"load_in_8bit": True} if "int8" in method else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return BitsAndBytesConfig(**bits, llm_int8_skip_modules=["head"])


@torch.no_grad()
def outputs(model, name):
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32, generator=generator)}
    if name == "MAEForPreTraining":
        inputs["noise"] = torch.rand(4, 16, generator=generator)
    return model(**inputs)["last_hidden_state" if name == "MAEModel" else "logits"]


def report(name, method, folder, out):
    load = getattr(mae_hf, name).from_pretrained
    quantised = load(folder, quantization_config=quantisation(method))
    saved = (method, name) != ("torchao int8", "MAEModel")
    if saved:
        quantised.save_pretrained(out)  # before it runs: bitsandbytes then rearranges 4-bit weights for the CPU
    expected, found = outputs(load(folder), name), outputs(quantised, name)
    return {
        "relative": ((found - expected).norm() / expected.norm()).item(),
        "again": torch.equal(outputs(load(out), name), found) if saved else None,
        "kinds": sorted({type(p).__name__ for n, p in quantised.named_parameters() if n.endswith("qkv.weight")}),
    }


if __name__ == "__main__":
    torch_file, method, folder, out = sys.argv[1:]
    assert torch.__file__ == torch_file, torch.__file__
    for model in Path(folder).iterdir():
        found = report(model.name, method, model, Path(out, model.name))
        Path(out, f"{model.name}.json").write_text(json.dumps(found))
