"""Conversion of weights between layouts, through the native one, and its verification.

`source` reads and recognises weights, `layouts` holds everything that is known of each layout, `inference` infers kind
and sizes from native weights, `convert` writes another layout, `staging` makes that atomic, `cards` documents it in a
model card, `releases` knows the released files, `commands` is the command line.
"""

from mae_hf.checkpoint import CheckpointError
from mae_hf.hub import push

from .convert import convert, verify
from .source import Converted, inspect

__all__ = ["CheckpointError", "Converted", "convert", "inspect", "push", "verify"]
