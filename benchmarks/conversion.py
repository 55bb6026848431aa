"""Time and memory of converting a whole pretraining checkpoint, beside copying the same file with an md5.

    python -m benchmarks.conversion [--preset huge] [--to mae_hf] [--rounds 3]

The two alternate. The conversion is the whole command, start of Python and import of PyTorch included: it computes the
md5 of the source, checks its checksums, looks at every weight, writes, reads back and compares what it wrote. Memory
is the largest resident anonymous memory, without pages of mapped files, as Linux tells it while the command runs.
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

from benchmarks.recipe import write_official
from mae_hf.configuration_mae import PRESETS
from mae_hf.conversion.layouts import LAYOUTS, OFFICIAL


def copy_with_md5(source: Path, destination: Path) -> float:
    """Seconds to copy a file and compute its md5 in one go."""
    start, digest = time.perf_counter(), hashlib.md5()
    with source.open("rb") as file, destination.open("wb") as copy:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            copy.write(chunk)
    return time.perf_counter() - start


def convert(source: Path, destination: Path, layout: str) -> tuple[float, int]:
    """Seconds and peak anonymous memory, in bytes, of the command."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "mae_hf.cli", "convert", str(source), str(destination), "--to", layout]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous_memory(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the conversion failed with status {process.returncode}")
    return time.perf_counter() - start, peak


def anonymous_memory(pid: int) -> int:
    """Resident anonymous memory of a process in bytes; 0 if it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def beside_copies(preset: str, layout: str, rounds: int) -> tuple[list[float], list[float], int]:
    """Convert a checkpoint and copy it, in turns; return seconds of both, and the peak of memory in bytes."""
    copies, conversions, peaks = [], [], []
    with tempfile.TemporaryDirectory() as name:
        source, made, copy = (Path(name) / file for file in ("source.pth", "made", "copy.pth"))
        write_official(preset, source)
        for _ in range(rounds):
            os.sync()  # so that neither waits for what the other has left to be written
            copies.append(copy_with_md5(source, copy))
            copy.unlink()
            os.sync()
            seconds, peak = convert(source, made, layout)
            conversions.append(seconds)
            peaks.append(peak)
            made.unlink() if layout == OFFICIAL else shutil.rmtree(made)
    return conversions, copies, max(peaks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="huge")
    parser.add_argument("--to", choices=LAYOUTS, default="mae_hf")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    conversions, copies, peak = beside_copies(options.preset, options.to, options.rounds)
    copy, conversion = statistics.median(copies), statistics.median(conversions)
    print(f"{options.preset} to {options.to}, medians of {options.rounds} alternating rounds")
    print(f"copy with md5: {copy:.1f} s ({min(copies):.1f} to {max(copies):.1f})")
    print(f"convert:       {conversion:.1f} s ({min(conversions):.1f} to {max(conversions):.1f})")
    print(f"ratio:         {conversion / copy:.2f}")
    print(f"peak anonymous memory of the conversion: {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
