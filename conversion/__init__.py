"""Conversion of weights between layouts, through the native one, and its verification.

`source` reads what is to be converted, `layouts` and `kinds` tell what it is, `config` makes its configuration,
`complete` checks that nothing is missing, `targets` writes another layout, `staging` puts it in its place, `cards` says
in a model card where it comes from; `catalogue` and `download` know the released files.
"""

from mae_hf.checkpoint import CheckpointError

from .config import Hints
from .convert import Converted, convert, verify
from .inspection import inspect

__all__ = ["CheckpointError", "Converted", "Hints", "convert", "inspect", "verify"]
