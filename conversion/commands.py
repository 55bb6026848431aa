"""The command lines of the conversion: arguments, what is printed, exit status."""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import huggingface_hub
import torch
from transformers.utils import logging

from mae_hf.checkpoint import first_line

from .config import Hints
from .convert import NORM_PIX_LOSS_NOT_TOLD, Converted, convert, verify
from .inspection import inspect
from .kinds import PRETRAINING
from .layouts import LAYOUTS, MAE_HF, OFFICIAL, TIMM, VIT_MAE
from .targets import auto_class

Command = Callable[[argparse.Namespace], int]
_SOURCE = (
    "file with official keys (.pth, .bin, .safetensors), folder (of mae_hf, ViTMAE or timm), name of a released file "
    "such as mae_visualize_vit_base, or Hub id"
)


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `convert`, `inspect` and `verify`."""
    parser = subparsers.add_parser("convert", help="weights from any layout to any other")
    parser.add_argument("source", metavar="SRC", help=_SOURCE)
    parser.add_argument(
        "destination", metavar="DST", help="folder to write, or file for --to official; appears whole or not at all"
    )
    parser.add_argument("--to", choices=LAYOUTS, default=MAE_HF, help="layout of DST (default: %(default)s)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a folder that a conversion has written, or a file that holds official weights alone",
    )
    parser.add_argument(
        "--norm-pix-loss",
        action=argparse.BooleanOptionalAction,
        help="the model predicts normalised pixels; for files that do not tell",
    )
    _add_hints(parser)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="cast the weights")
    parser.add_argument(
        "--max-shard-size", default="5GB", type=_file_size, help="largest safetensors file (default: %(default)s)"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="of the weights, for the card; a released file keeps cc-by-nc-4.0 (default: that of SRC's card, or other)",
    )
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="put the code of the models into DST: transformers loads it with trust_remote_code=True anywhere",
    )
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="upload DST to the Hub as well")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.set_defaults(command=_convert, usage_error=parser.error)

    parser = subparsers.add_parser("inspect", help="say what weights are")
    parser.add_argument("source", metavar="SRC", help=_SOURCE)
    _add_hints(parser)
    parser.set_defaults(command=_inspect)

    parser = subparsers.add_parser("verify", help="compare weights with what was made of them, bit for bit")
    parser.add_argument("source", metavar="SRC", help=_SOURCE)
    parser.add_argument("destination", metavar="DST", help="likewise")
    parser.set_defaults(command=_verify)


def _add_hints(parser: argparse.ArgumentParser) -> None:
    heads = "heads of the {}, which the weights do not tell; needed unless its width is that of a released model"
    parser.add_argument("--num-attention-heads", type=int, metavar="N", help=heads.format("encoder"))
    parser.add_argument("--decoder-num-attention-heads", type=int, metavar="N", help=heads.format("decoder"))
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images; needed if they are not square",
    )


def _file_size(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"expected a number with KB, MB, GB or TB, such as 5GB, got {text!r}")
    return text


def _hints(options: argparse.Namespace) -> Hints:
    size = tuple(options.image_size) if options.image_size else None
    return Hints(options.num_attention_heads, options.decoder_num_attention_heads, size)


def _convert(options: argparse.Namespace) -> int:
    if options.private and not options.push_to_hub:
        options.usage_error("--private is for a repository: give --push-to-hub REPO_ID as well")
    if options.push_to_hub and options.to == OFFICIAL:
        options.usage_error("--push-to-hub uploads a folder, and --to official writes a file: choose another layout")
    if options.with_code and options.to != MAE_HF:
        options.usage_error(f"--with-code is for folders of this package, not for --to {options.to}")
    done = convert(
        options.source,
        options.destination,
        to=options.to,
        overwrite=options.overwrite,
        norm_pix_loss=options.norm_pix_loss,
        hints=_hints(options),
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        max_shard_size=options.max_shard_size,
        license=options.license,
        with_code=options.with_code,
    )
    cast = f", cast to {options.dtype}" if options.dtype else ""
    print(f"{options.destination}: {done.num_tensors} tensors{cast}, read back and compared bit for bit")
    if done.left_out:
        print(f"left out, as they are no weights: {', '.join(done.left_out)}")
    if not done.checksummed:
        print("safetensors and the old serialisation carry no checksums: damage in the source would not be noticed")
    if done.kind == PRETRAINING and options.to != OFFICIAL:
        print(f"norm_pix_loss is {done.config.norm_pix_loss}, from {done.norm_pix_loss_from}")
        if done.norm_pix_loss_from == NORM_PIX_LOSS_NOT_TOLD:
            print("pass --norm-pix-loss (and --overwrite) if the model was trained to predict normalised pixels")
    print(_how_to_load(options.to, done, options.destination))
    if options.with_code:
        name = auto_class(done.kind)
        print(f'or, without mae_hf, with {name}.from_pretrained("{options.destination}", trust_remote_code=True)')
    if options.push_to_hub:
        print(_push(options.destination, options.push_to_hub, options.private))
    return 0


def _how_to_load(layout: str, done: Converted, destination: str) -> str:
    if layout == OFFICIAL:
        return f'load it with torch.load("{destination}", weights_only=True)["model"]'
    if layout == TIMM:
        return f'load it with timm.create_model("local-dir:{destination}", pretrained=True), which is not tested here'
    library = "transformers" if layout == VIT_MAE else "mae_hf"
    return f'load it with {done.class_name}.from_pretrained("{destination}") of {library}'


def _push(folder: str, repo_id: str, private: bool) -> str:
    """Upload a folder and return where it is."""
    client = huggingface_hub.HfApi()
    try:
        client.create_repo(repo_id, private=private, exist_ok=True)
        if private and not client.repo_info(repo_id).private:
            raise ValueError("the repository is there already and is public")
        # weights of an earlier upload could be loaded in place of these
        former = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
        message = "Add converted weights"
        return str(
            client.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=former)
        )
    except Exception as error:  # the client raises errors of several libraries
        raise ValueError(f"{folder} is complete, but was not uploaded to {repo_id}: {first_line(error)}") from error


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
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            status: int = options.command(options)
    except (ValueError, OSError) as error:
        print(f"mae-hf: {first_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # a mistake of ours: one line all the same, and nothing half-written
        name = type(error).__name__
        print(f"mae-hf: unexpected {name}, please report it with the command: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mae-hf: interrupted", file=sys.stderr)
        return 1
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"mae-hf: warning: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the conversion's commands alone, for `python -m conversion`."""
    parser = argparse.ArgumentParser(prog="python -m conversion", description="Convert weights of masked autoencoders.")
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    return run(parser.parse_args(arguments))
