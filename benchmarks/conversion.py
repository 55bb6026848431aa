"""Time and memory of converting a pretraining checkpoint, compared with copying the file while computing its md5.

    python -m benchmarks.conversion [--preset huge] [--to mae_hf] [--rounds 3]

The two alternate. The conversion is the whole command, including the start of Python and the import of PyTorch: it
computes the md5 of the source, verifies its checksums, checks every weight, writes, reads back and compares what it
wrote. Memory is the peak of resident anonymous memory, without pages of mapped files, as Linux reports it while the
command runs.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.configuration_mae import PRESETS
from mae_hf.conversion.layouts import LAYOUTS
from mae_hf.key_maps import native_to_official


def write_checkpoint(size: str, path: Path) -> None:
    """Write a randomly initialised model of a size as an official pretraining checkpoint."""
    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig.from_preset(size))
    torch.save({"model": native_to_official(model.state_dict())}, path)


def copy_with_md5(source: Path, destination: Path) -> float:
    """Copy a file and compute its md5 in one pass; returns the seconds."""
    start = time.perf_counter()
    digest = hashlib.md5()
    with source.open("rb") as file, destination.open("wb") as copy:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            copy.write(chunk)
    return time.perf_counter() - start


def convert(size: str, source: Path, destination: Path, layout: str) -> tuple[float, int]:
    """Convert a checkpoint by the command line.

    Args:
        size: Size of the model: the heads are only inferred for released sizes.
        source: Checkpoint in the official layout.
        destination: File or folder to write.
        layout: Layout of the destination.

    Returns:
        Seconds, and the peak of anonymous memory in bytes.
    """
    config = MAEConfig.from_preset(size)
    heads = ["--num-attention-heads", str(config.num_attention_heads)]
    heads += ["--decoder-num-attention-heads", str(config.decoder_num_attention_heads)]
    command = [sys.executable, "-m", "mae_hf.cli", "convert", str(source), str(destination), "--to", layout, *heads]
    start = time.perf_counter()
    peak = 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous_memory(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the conversion failed with status {process.returncode}")
    return time.perf_counter() - start, peak


def anonymous_memory(pid: int) -> int:
    """Return the resident anonymous memory of a process in bytes; 0 if it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def compare_with_copies(size: str, layout: str, rounds: int) -> tuple[list[float], list[float], int]:
    """Convert and copy a checkpoint, alternating.

    Args:
        size: Size of the model.
        layout: Layout to convert to.
        rounds: Number of conversions and of copies.

    Returns:
        Seconds of each conversion and of each copy, and the peak of the conversions' anonymous memory in bytes.
    """
    copies, conversions, peaks = [], [], []
    with tempfile.TemporaryDirectory() as name:
        source, destination, copy = (Path(name) / file for file in ("source.pth", "converted", "copy.pth"))
        write_checkpoint(size, source)
        for _ in range(rounds):
            os.sync()  # so that neither waits for the other's unwritten pages
            copies.append(copy_with_md5(source, copy))
            copy.unlink()
            os.sync()
            seconds, peak = convert(size, source, destination, layout)
            conversions.append(seconds)
            peaks.append(peak)
            destination.unlink() if destination.is_file() else shutil.rmtree(destination)
    return conversions, copies, max(peaks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="huge", help="size of the model (default: %(default)s)")
    parser.add_argument("--to", choices=LAYOUTS, default="mae_hf", help="layout to convert to (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="conversions and copies (default: %(default)s)")
    options = parser.parse_args()
    conversions, copies, peak = compare_with_copies(options.preset, options.to, options.rounds)
    copy = statistics.median(copies)
    conversion = statistics.median(conversions)
    print(f"{options.preset} to {options.to}, medians of {options.rounds} alternating rounds")
    print(f"copy with md5: {copy:.1f} s ({min(copies):.1f} to {max(copies):.1f})")
    print(f"convert:       {conversion:.1f} s ({min(conversions):.1f} to {max(conversions):.1f})")
    print(f"ratio:         {conversion / copy:.2f}")
    print(f"peak anonymous memory of the conversion: {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
