"""Who may import whom in `mae_hf` and `conversion`. Every import counts, also inside a function or TYPE_CHECKING.

A new module gets a row in one of these tables; an import that is not in them fails with its file and line.
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from mae_hf.remote_code import code_files
from tests.helpers import ROOT

# The parts take plain numbers: they import parts above them, torch and what TRANSFORMERS lists, never the config.
PARTS = {
    "patch_embed": [],
    "pos_embed": ["patch_embed"],
    "masking": [],
    "attention": [],
    "transformer": ["attention"],
    "encoder": ["transformer"],
    "decoder": ["patch_embed", "pos_embed", "transformer"],
    "loss": [],
}
TRANSFORMERS = {
    "attention": ["transformers.PretrainedConfig", "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS"],
    "transformer": ["transformers.activations.ACT2FN", "transformers.modeling_layers.GradientCheckpointingLayer"],
    "decoder": ["transformers.initialization"],
}
# The modelling closure is what a folder with code contains: it imports nothing else of this package.
CLOSURE = {
    **PARTS,
    "remote_code": [],
    "configuration_mae": ["masking", "patch_embed", "remote_code"],
    "pretrained": [*PARTS, "configuration_mae"],
    "modeling_mae": [*PARTS, "configuration_mae", "pretrained"],
}
# All others in mae_hf may import the closure, and of one another what stands here.
AROUND = {
    "key_maps": [],
    "checkpoint": [],
    "image_processor": [],
    "vit_mae": ["checkpoint", "key_maps"],
    "training": [],
    "hub": ["checkpoint"],
    "reconstruction": ["image_processor"],
    "official.common": [],
    "official.models_mae": ["checkpoint", "official.common"],
    "official.models_vit": ["official.common"],
    "official.registry": ["official.models_mae", "official.models_vit"],
    "official": ["official.models_mae", "official.models_vit", "official.registry"],
}
# conversion may import all of these; it is imported by the command line alone.
CONVERSION = {
    "releases": [],
    "staging": [],
    "inference": ["releases"],
    "layouts": ["inference"],
    "source": ["layouts", "inference", "releases"],
    "cards": ["source", "inference", "releases", "layouts"],
    "convert": ["source", "layouts", "staging", "cards"],
    "commands": ["convert", "source", "layouts", "inference"],
    "__init__": ["convert", "source"],
    "__main__": ["commands"],
}
# Modules that know the layouts of weights by name; all others treat them alike.
LAYOUTS = ("official", "vit_mae", "timm")
KNOW_LAYOUTS = ("conversion.layouts", "mae_hf.key_maps", "mae_hf.vit_mae")


def _within(package, table):
    return {f"{package}.{name}": {f"{package}.{other}" for other in others} for name, others in table.items()}


_CLOSURE = _within("mae_hf", CLOSURE)
_AROUND = {name: others | _CLOSURE.keys() for name, others in _within("mae_hf", AROUND).items()}
_PACKAGE = {**_CLOSURE, **_AROUND, "mae_hf.__init__": _CLOSURE.keys() | _AROUND.keys()}
_CLI = {"mae_hf.cli": {*_PACKAGE, "conversion.__init__", "conversion.commands"}}
_CONVERSION = {name: others | _PACKAGE.keys() for name, others in _within("conversion", CONVERSION).items()}
_CONVERSION["conversion.__main__"] |= _CLI.keys()  # it is the command line of the package
ALLOWED = {**_PACKAGE, **_CLI, **_CONVERSION}


class Import(NamedTuple):
    """One imported name: its line, the module or `module.name`, and the number of leading dots."""

    line: int
    module: str
    name: str | None
    level: int

    @property
    def dotted(self):
        return self.module if self.name is None else f"{self.module}.{self.name}"

    @property
    def target(self):
        """The module of ours that this imports, as in `ALLOWED`; None for another package."""
        dotted, module = (
            text.replace("mae_hf.conversion", "conversion", 1) if text.startswith("mae_hf.conversion") else text
            for text in (self.dotted, self.module)
        )
        if module.partition(".")[0] not in ("mae_hf", "conversion"):
            return None
        found = (name for name in (dotted, module, f"{module}.__init__") if name in ALLOWED)
        return next(found, module)


def module_of(path):
    """`mae_hf/encoder.py` to "mae_hf.encoder", and the folder `official` to "mae_hf.official"."""
    name = ".".join(Path(path).with_suffix("").parts)
    return name.removesuffix(".__init__") if name.count(".") > 1 else name


def imports_of(path, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, None, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = Path(path).parts[: -node.level] if node.level else ()
            module = ".".join((*parents, *filter(None, [node.module])))
            yield from (Import(node.lineno, module, alias.name, node.level) for alias in node.names)


def wrong_arrows(importer, imports):
    for found in imports:
        if found.target and found.target not in ALLOWED[importer]:
            yield found.line, f"{importer} may not import {found.target}"


def wrong_forms(importer, imports):
    """transformers copies the closure into a flat folder; `conversion` has two names, so it uses neither for itself."""
    package = importer.partition(".")[0]
    for found in imports:
        if found.target is None:
            continue
        own = found.target.partition(".")[0] == package
        if importer in _CLOSURE:
            flat = found.level == 1 and found.module.count(".") == 1
            if not flat:
                yield found.line, "the modelling closure imports only in the form `from .module import name`"
        elif own != bool(found.level):
            yield found.line, "a package imports its own modules relatively and the other package absolutely"


def wrong_libraries(importer, imports):
    part = importer.removeprefix("mae_hf.")
    for found in imports:
        library = found.module.partition(".")[0]
        if importer not in _CLOSURE or found.target or library in ("torch", *sys.stdlib_module_names):
            continue
        allowed = library == "transformers" if part not in PARTS else found.dotted in TRANSFORMERS.get(part, ())
        if not allowed:
            yield found.line, f"{importer} may not import {found.dotted}"


def hidden_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__"):
                yield node.lineno, f"{called} hides an import: write a statement"


def layouts_named(importer, imports, tree):
    if importer in KNOW_LAYOUTS:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in LAYOUTS:
            yield node.lineno, f"{node.value!r} names a layout: ask the object in conversion/layouts.py"
    for found in imports:
        if importer.startswith("conversion.") and any(name in found.dotted.lower() for name in LAYOUTS):
            yield found.line, f"{found.dotted} belongs to a layout: only conversion/layouts.py imports it"


def violations(path, text):
    """What in a file breaks the rules, as `path:line: reason`."""
    importer = module_of(path)
    if importer not in ALLOWED:
        return [f"{path}:1: {importer} is in none of the tables"]
    tree = ast.parse(text)
    imports = list(imports_of(path, tree))
    found = [
        *wrong_arrows(importer, imports),
        *wrong_forms(importer, imports),
        *wrong_libraries(importer, imports),
        *hidden_imports(tree),
        *layouts_named(importer, imports, tree),
    ]
    return [f"{path}:{line}: {reason}" for line, reason in sorted(set(found))]


FILES = sorted(
    str(path.relative_to(ROOT)) for folder in ("mae_hf", "conversion") for path in ROOT.glob(f"{folder}/**/*.py")
)


@pytest.mark.parametrize("path", FILES)
def test_module_imports_only_what_it_may(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_folder_with_code_contains_the_modelling_closure():
    assert {path.stem for path in code_files()} == set(CLOSURE) and len(CLOSURE) <= 12


def test_nothing_points_back():
    tuple(TopologicalSorter(ALLOWED).static_order())  # raises CycleError


def test_conversion_has_at_most_ten_modules_that_need_at_most_four_others():
    assert {Path(path).stem for path in FILES if path.startswith("conversion/")} == set(CONVERSION)
    assert len(CONVERSION) <= 10 and max(map(len, CONVERSION.values())) <= 4


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        # a part that knows a model, the config, another part that it does not need, or a library
        ("mae_hf/encoder.py", "import torch\nfrom .configuration_mae import MAEConfig", 2),
        ("mae_hf/attention.py", "def f():\n    from .transformer import Block", 2),
        ("mae_hf/loss.py", "from .patch_embed import patchify", 1),
        ("mae_hf/attention.py", "import math\n\nfrom transformers import PreTrainedModel", 3),
        ("mae_hf/masking.py", "from transformers.activations import ACT2FN", 1),
        ("mae_hf/transformer.py", "import transformers", 1),
        ("mae_hf/pos_embed.py", "import numpy", 1),
        # the closure: nothing outside it, not even for types, and in one form only
        (
            "mae_hf/modeling_mae.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .vit_mae import x",
            3,
        ),
        ("mae_hf/pretrained.py", "from .checkpoint import read_checkpoint", 1),
        ("mae_hf/modeling_mae.py", "from .official.models_mae import MaskedAutoencoder", 1),
        ("mae_hf/modeling_mae.py", "from .training import MaskingCollator", 1),
        ("mae_hf/pretrained.py", "from mae_hf.conversion import convert", 1),
        ("mae_hf/pretrained.py", "from .conversion.commands import run", 1),
        ("mae_hf/modeling_mae.py", "from . import encoder", 1),
        ("mae_hf/modeling_mae.py", "import mae_hf.encoder", 1),
        ("mae_hf/modeling_mae.py", "from mae_hf.encoder import MAEEncoder", 1),
        ("mae_hf/configuration_mae.py", "from .modeling_mae import MAEModel", 1),
        ("mae_hf/modeling_mae.py", "from PIL import Image", 1),
        # around the closure
        ("mae_hf/reconstruction.py", "from .cli import main", 1),
        ("mae_hf/reconstruction.py", "from mae_hf.masking import MASKS", 1),
        ("mae_hf/training.py", "from .reconstruction import reconstruct", 1),
        ("mae_hf/__init__.py", "from .cli import main", 1),
        ("mae_hf/__init__.py", "from mae_hf.conversion import convert", 1),
        ("mae_hf/official/models_vit.py", "from .models_mae import MaskedAutoencoder", 1),
        ("mae_hf/official/common.py", "from .. import reconstruct", 1),
        ("mae_hf/official/registry.py", "from ..conversion import convert", 1),
        ("mae_hf/cli.py", "from .conversion.commands import run", 1),
        ("mae_hf/cli.py", "from mae_hf.conversion.layouts import LAYOUTS", 1),
        ("mae_hf/checkpoint.py", "import importlib\nimportlib.import_module('mae_hf.cli')", 2),
        ("mae_hf/video.py", "", 1),
        # conversion
        ("conversion/releases.py", "import os\nfrom .inference import infer", 2),
        ("conversion/staging.py", "from .layouts import recognise_layout", 1),
        ("conversion/layouts.py", "from . import source", 1),
        ("conversion/source.py", "def f():\n    from .convert import convert", 2),
        ("conversion/cards.py", "from .staging import staged", 1),
        ("conversion/commands.py", "from .cards import folder_card", 1),
        ("conversion/convert.py", "from conversion.source import read_source", 1),
        ("conversion/convert.py", "from mae_hf.conversion.source import read_source", 1),
        ("conversion/convert.py", "from ..mae_hf.masking import MASKS", 1),
        ("conversion/inference.py", "from mae_hf.cli import main", 1),
        ("conversion/kinds.py", "", 1),
        # layouts
        ("conversion/commands.py", "def f(layout):\n    return layout == 'timm'", 2),
        ("conversion/convert.py", "def f(layout):\n    match layout:\n        case 'vit_mae':\n            pass", 3),
        ("mae_hf/cli.py", "NAMES = {'official': 1}", 1),
        ("conversion/convert.py", "from .layouts import LAYOUTS, TIMM", 1),
        ("conversion/source.py", "from mae_hf.key_maps import official_to_native", 1),
        ("conversion/source.py", "from mae_hf.vit_mae import config_from_vit_mae", 1),
    ],
)
def test_violation_is_reported_with_its_line(path, text, line):
    found = violations(path, text)
    assert found and all(entry.startswith(f"{path}:{line}: ") for entry in found), found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mae_hf/attention.py", "from transformers import PretrainedConfig"),
        ("mae_hf/decoder.py", "import math\nfrom torch import nn\nfrom .transformer import make_blocks"),
        (
            "mae_hf/modeling_mae.py",
            "from transformers.utils import ModelOutput\nfrom .pretrained import MAEPreTrainedModel",
        ),
        ("mae_hf/official/models_mae.py", "from ..checkpoint import x\nfrom .common import y"),
        ("mae_hf/official/__init__.py", "from . import models_mae"),
        ("mae_hf/cli.py", "from mae_hf.conversion.commands import run\nfrom .reconstruction import reconstruct"),
        (
            "conversion/convert.py",
            "from mae_hf import MAEConfig\nfrom mae_hf.remote_code import x\nfrom .staging import y",
        ),
        ("conversion/layouts.py", "from mae_hf.vit_mae import x\nNAME = 'timm'"),
        ("conversion/commands.py", "HELP = 'load it with timm'"),
    ],
)
def test_what_is_allowed_is_not_reported(path, text):
    assert violations(path, text) == []
