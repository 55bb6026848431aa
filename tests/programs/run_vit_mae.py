"""Run a ViTMAE of transformers and save it in every form: `run_vit_mae.py VERSION TORCH_FILE FOLDER INPUTS OUT`.

VERSION and TORCH_FILE are the transformers and the PyTorch that are expected. INPUTS is a safetensors file. OUT gets
`outputs.safetensors` and the folders `safetensors` and, with transformers 4, `bin` and `sharded_bin`.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(version, torch_file, folder, inputs, out):
    assert transformers.__version__ == version, transformers.__version__
    assert torch.__file__ == torch_file, torch.__file__
    name = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        outputs = model.eval()(**load_file(inputs))
    Path(out).mkdir()
    save_file({key: value.contiguous() for key, value in outputs.items()}, f"{out}/outputs.safetensors")
    model.save_pretrained(f"{out}/safetensors")
    if version.startswith("4."):
        model.save_pretrained(f"{out}/bin", safe_serialization=False)
        model.save_pretrained(f"{out}/sharded_bin", safe_serialization=False, max_shard_size="100KB")


if __name__ == "__main__":
    main(*sys.argv[1:])
