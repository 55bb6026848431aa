"""Converted models to the Hub and back: `converted_models.py COMMAND ARGUMENTS`; a command is a function here.

The client reads HF_ENDPOINT when it is imported, so it needs a process of its own.
"""

import sys

import huggingface_hub
import torch

from mae_hf import MAEForPreTraining, MAEModel, load_vit_mae


def compare(*names):
    """Load models in pairs, a repository and a folder, and compare them."""
    for repo_id, folder in zip(names[::2], names[1::2], strict=True):
        model, info = MAEForPreTraining.from_pretrained(repo_id, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        expected = MAEForPreTraining.from_pretrained(folder).state_dict()
        assert model.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def push(folder, repo_id):
    MAEForPreTraining.from_pretrained(folder).push_to_hub(repo_id)


def load_encoder_of_vit_mae(repo_id, folder):
    load_vit_mae(repo_id, MAEModel).save_pretrained(folder)


def create(repo_id):
    huggingface_hub.create_repo(repo_id)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
