"""Fixtures of all tests: golden values, tiny models and a Hub; and how tests share the machine."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test uses the internet
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported: more threads slow tiny tensors down

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.key_maps import official_to_native
from tests.helpers import REFERENCE, TINY
from tests.helpers.hub_server import hub_server

logging.disable_progress_bar()
MINUTES = {  # on one core, of the longest files
    "versions": 12,
    "conversion_layouts": 6,
    "documents": 3.5,
    "small_runs": 3,
    "pretrain": 2.5,
    "against_official_full": 2.3,
    "pretrain_processes": 2.1,
    "benchmarks": 1.7,
    "compile": 1.6,
    "packaging": 1.3,
    "parity": 1.2,
    "conversion_hub": 1,
    "conversion_mutations": 1,
    "finetune": 1,
    "export_onnx": 0.8,
    "hub": 0.7,
    "conversion_killed": 0.7,
    "against_vit_mae": 0.6,
    "auto_classes": 0.5,
    "with_quantisation": 0.5,
}


def pytest_collection_modifyitems(items):
    """Put the longest files first: workers take one file after the other, and the short ones even out their ends."""
    items.sort(key=lambda item: -MINUTES.get(item.path.stem.removeprefix("test_"), 0))


@pytest.fixture(autouse=True)
def threads(request):
    """Heavy tests use all cores that the other workers of pytest-xdist leave, unless they are marked `one_thread`."""
    before = torch.get_num_threads()
    if request.node.get_closest_marker("heavy") and not request.node.get_closest_marker("one_thread"):
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, os.cpu_count() // workers))
    yield
    torch.set_num_threads(before)


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
    """Creates the configuration of the tiny model, with changes."""
    return lambda **changes: MAEConfig(**{**TINY, **changes})


@pytest.fixture
def tiny_weights():
    """Official state dict of the tiny pretraining model."""
    return torch.load(REFERENCE / "tiny" / "full.pth", weights_only=True)["model"]


@pytest.fixture
def tiny_model(tiny_config, tiny_weights):
    """Creates the tiny pretraining model with the golden weights, in eval mode."""

    def make(**changes):
        model = MAEForPreTraining(tiny_config(**changes)).eval()
        model.load_state_dict(official_to_native(tiny_weights))
        return model

    return make


@pytest.fixture
def fresh(tiny_config):
    """Creates a randomly initialised tiny pretraining model, the same every time."""

    def make(**changes):
        torch.manual_seed(0)
        return MAEForPreTraining(tiny_config(**changes))

    return make


@pytest.fixture
def hub():
    """A Hub on 127.0.0.1; a request that it does not implement fails the test."""
    with hub_server(token="hf_test") as hub:
        yield hub
        assert hub.unknown == []
