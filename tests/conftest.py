import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test asks the internet
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is: tiny tensors lose by threads

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.key_maps import official_to_native
from tests.hub_server import hub_server

logging.disable_progress_bar()
REFERENCE = Path(__file__).parent / "data" / "reference"
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
}


@pytest.fixture(autouse=True)
def all_threads_for_large_models(request):
    """The heavy tests take all cores."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("heavy"):
        torch.set_num_threads(os.cpu_count())
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference():
    """Folder of the golden values of the official implementation."""
    return REFERENCE


@pytest.fixture(scope="session")
def golden():
    """Golden values of the tiny model."""
    return load_file(REFERENCE / "tiny" / "golden.safetensors")


@pytest.fixture
def tiny_config():
    """Makes the configuration of the tiny model, with changes."""
    return lambda **changes: MAEConfig(**{**TINY, **changes})


@pytest.fixture
def tiny_weights():
    """Official state dict of the tiny pretraining model."""
    return torch.load(REFERENCE / "tiny" / "full.pth", weights_only=True)["model"]


@pytest.fixture
def tiny_model(tiny_config, tiny_weights):
    """Makes the tiny pretraining model with the golden weights, in eval mode."""

    def make(**changes):
        model = MAEForPreTraining(tiny_config(**changes)).eval()
        model.load_state_dict(official_to_native(tiny_weights))
        return model

    return make


@pytest.fixture
def hub():
    """A Hub on 127.0.0.1, which is asked for nothing that it does not know."""
    with hub_server(token="hf_test") as hub:
        yield hub
        assert hub.unknown == []


@pytest.fixture
def fresh(tiny_config):
    """Makes a fresh tiny pretraining model."""

    def make(**changes):
        torch.manual_seed(0)
        return MAEForPreTraining(tiny_config(**changes))

    return make
