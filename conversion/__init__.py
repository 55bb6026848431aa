"""Conversion of other people's checkpoints into folders that `from_pretrained` loads, and its verification."""

from .convert import convert, verify
from .inspection import inspect

__all__ = ["convert", "inspect", "verify"]
