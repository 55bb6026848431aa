"""The command lines of the conversion: arguments, what is printed, exit status."""

import argparse
import sys
from collections.abc import Callable, Sequence

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from .convert import UNKNOWN_TARGET, convert, verify
from .inspection import inspect
from .official import MODEL_CLASSES, Hints

Command = Callable[[argparse.Namespace], int]


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `convert`, `inspect` and `verify`."""
    parser = subparsers.add_parser("convert", help="official .pth to a folder for from_pretrained")
    parser.add_argument("source", metavar="SRC", help=".pth file: encoder, pretraining model or training checkpoint")
    parser.add_argument("destination", metavar="DST", help="folder to write; appears whole or not at all")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that a conversion has written")
    parser.add_argument(
        "--norm-pix-loss",
        action=argparse.BooleanOptionalAction,
        help="the model predicts normalised pixels; for files that do not tell",
    )
    _add_hints(parser)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="cast the weights")
    parser.add_argument("--max-shard-size", default="5GB", help="largest safetensors file (default: %(default)s)")
    parser.add_argument("--license", metavar="ID", help="licence of the weights, for the card (default: other)")
    parser.set_defaults(command=_convert)

    parser = subparsers.add_parser("inspect", help="say what a .pth file is")
    parser.add_argument("source", metavar="SRC")
    _add_hints(parser)
    parser.set_defaults(command=_inspect)

    parser = subparsers.add_parser("verify", help="compare a .pth with the folder made of it, bit for bit")
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("destination", metavar="DST")
    parser.set_defaults(command=_verify)


def _add_hints(parser: argparse.ArgumentParser) -> None:
    heads = "heads of the {}, which the weights do not tell; needed unless its width is that of a released model"
    parser.add_argument("--num-attention-heads", type=int, metavar="N", help=heads.format("encoder"))
    parser.add_argument("--decoder-num-attention-heads", type=int, metavar="N", help=heads.format("decoder"))
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="for images that are not square"
    )


def _hints(options: argparse.Namespace) -> Hints:
    size = tuple(options.image_size) if options.image_size else None
    return Hints(options.num_attention_heads, options.decoder_num_attention_heads, size)


def _convert(options: argparse.Namespace) -> int:
    done = convert(
        options.source,
        options.destination,
        overwrite=options.overwrite,
        norm_pix_loss=options.norm_pix_loss,
        hints=_hints(options),
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        max_shard_size=options.max_shard_size,
        license=options.license,
    )
    model_class = MODEL_CLASSES[done.kind].__name__
    cast = f", cast to {options.dtype}" if options.dtype else ""
    print(f"{options.destination}: {done.num_tensors} tensors{cast}, read back and compared bit for bit")
    print(f"norm_pix_loss is {done.config.norm_pix_loss}, from {done.norm_pix_loss_from}")
    if done.norm_pix_loss_from == UNKNOWN_TARGET:
        print("pass --norm-pix-loss (and --overwrite) if the model was trained to predict normalised pixels")
    print(f'load it with {model_class}.from_pretrained("{options.destination}")')
    return 0


def _inspect(options: argparse.Namespace) -> int:
    for name, value in inspect(options.source, _hints(options)).items():
        print(f"{name:22s} {value}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    lines = verify(options.source, options.destination)
    if lines:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        print(f"mae-hf: {options.destination} differs: {lines[0]}{more}", file=sys.stderr)
        return 1
    print(
        f"{options.source} and {options.destination}: every tensor equal, bit for bit; nothing missing, nothing extra"
    )
    return 0


def run(options: argparse.Namespace) -> int:
    """Run the chosen command; what is wrong with the input becomes one line on standard error and exit status 1."""
    huggingface_hub.logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        status: int = options.command(options)
    except (ValueError, OSError, HfHubHTTPError) as error:
        text = str(error).strip() or type(error).__name__
        print(f"mae-hf: {text.splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mae-hf: interrupted", file=sys.stderr)
        return 1
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the conversion's commands alone, for `python -m conversion`."""
    parser = argparse.ArgumentParser(prog="python -m conversion", description="Convert official MAE checkpoints.")
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    return run(parser.parse_args(arguments))
