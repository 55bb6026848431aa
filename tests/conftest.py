import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test asks the internet

import pytest
from safetensors.torch import load_file
from transformers.utils import logging

logging.disable_progress_bar()
REFERENCE = Path(__file__).parent / "data" / "reference"


@pytest.fixture(scope="session")
def reference():
    """Folder of the golden values of the official implementation."""
    return REFERENCE


@pytest.fixture(scope="session")
def golden():
    """Golden values of the tiny model."""
    return load_file(REFERENCE / "tiny" / "golden.safetensors")
