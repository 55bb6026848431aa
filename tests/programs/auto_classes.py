"""Load folders by every Auto class of transformers: `auto_classes.py registered|remote SOURCE TARGET`.

`registered` imports mae_hf first; `remote` makes its import fail and runs the code that the folders carry.
SOURCE has one folder for each Auto class, of that name. TARGET gets what the loaded models save, and in
`numbers.safetensors` the features of every encoder and the output of each Auto class on the folder of its name.
"""

import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

AUTO_CLASSES = ("AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification", "AutoBackbone")
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
NOISE = torch.linspace(0, 1, 32).reshape(2, 16)


def load(name, folder, options):
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    auto = getattr(transformers, name)
    if name != "AutoBackbone":
        return auto.from_pretrained(folder, **options)
    # AutoBackbone.from_pretrained accepts ids of the Hub only, which tests/test_hub.py covers
    return type(auto.from_config(config, **options)).from_pretrained(folder)


def main(way, source, target):
    options = {"trust_remote_code": True} if way == "remote" else {}
    numbers = {}
    for folder in sorted(Path(source).iterdir()):
        for name in AUTO_CLASSES:
            model = load(name, folder, options)
            for found in (type(model), type(model.config)):
                assert found.__module__.startswith("transformers_modules." if way == "remote" else "mae_hf."), found
            encoder = getattr(model, "mae", model)
            numbers[f"{folder.name} {name} features"] = encoder(IMAGES).last_hidden_state
            if name == folder.name:
                out = model(IMAGES, **({"noise": NOISE} if "PreTraining" in name else {}))
                numbers[f"{name} out"] = out.feature_maps[0] if name == "AutoBackbone" else out[0]
                model.save_pretrained(Path(target) / name)
    contiguous = {key: value.contiguous() for key, value in numbers.items()}
    save_file(contiguous, Path(target) / "numbers.safetensors")


if __name__ == "__main__":
    if sys.argv[1] == "registered":
        import mae_hf  # noqa: F401
    else:
        sys.modules["mae_hf"] = None  # makes every import of it fail
    warnings.simplefilter("ignore")  # about parts that a folder lacks
    main(*sys.argv[1:])
