"""Speed and memory beside transformers' ViTMAE on this machine, as a table and as a plot.

    make bench
    python -m benchmarks.speed step compiled --device cuda --output my-gpu

Two processes take turns, with a third that computes nothing but the matrix products of the linear layers: the ceiling.
Figures are medians with quartiles; a ratio is that of two turns in succession. On a CPU each side has the attention
implementation that is faster for it, except for memory and growth, which are those of "sdpa". "bfloat16" is autocast. A
step is a forward and a backward pass.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.conversion import beside_copies, convert
from benchmarks.recipe import write_official
from benchmarks.report import as_table, write_report
from benchmarks.turns import alternate, faster_attention, quartiles, seconds
from benchmarks.worker import Job
from mae_hf.configuration_mae import PRESETS

LIBRARIES = ("mae_hf", "transformers")
BF16 = "bfloat16"
# preset, batch and dtype: half an hour on two cores; for a GPU, tens of gigabytes
STEPS = {
    "cpu": [("base", 8, "float32"), ("base", 8, BF16), ("base", 32, BF16), ("large", 8, BF16), ("huge", 4, BF16)],
    "cuda": [("base", 1024, BF16), ("large", 512, BF16), ("huge", 256, BF16)],
}
COMPILED = {"cpu": [("base", 8, BF16)], "cuda": STEPS["cuda"]}
FEATURES = {"cpu": [("base", 8, "float32"), ("base", 8, BF16)], "cuda": STEPS["cuda"]}
CLASSIFIER = {"cpu": [("base", 8, BF16)], "cuda": STEPS["cuda"]}
MEMORY = {"cpu": [("base", 8, BF16), ("base", 32, BF16), ("large", 8, BF16)], "cuda": STEPS["cuda"]}
CASES = {"step": STEPS, "compiled": COMPILED, "features": FEATURES, "classifier": CLASSIFIER, "memory": MEMORY}
# what grows: one field of a job, its values with their places on the axis and the axis itself, and the job
PARAMETERS = {"base": 111.9, "large": 329.5, "huge": 657.1}  # millions: README.md
GROWTH: dict[str, list[tuple[str, dict[Any, float], str, Job]]] = {
    device: [
        ("mask_ratio", {r: 1 - r for r in (0.0, 0.25, 0.5, 0.75, 0.9)}, "share of visible patches", features),
        ("image_size", {s: s**2 / 1e3 for s in (112, 224, 336, 448)}, "pixels of an image / 1000", step),
        ("batch", {n: n for n in batches}, "images in a batch", step),
        ("preset", PARAMETERS, "million parameters", step),
    ]
    for device, batches, features, step in (
        ("cpu", (1, 2, 4, 8, 16), Job(task="features"), Job(dtype=BF16, batch=4)),
        ("cuda", (16, 32, 64, 128, 256), Job(task="features", batch=256), Job(dtype=BF16, batch=128)),
    )
}

Row = dict[str, Any]


def make_row(group: str, what: str, unit: str, ours: Sequence[float], theirs: Sequence[float], **more: Any) -> Row:
    """One line of the table: values taken in turns, summarised."""
    ratio = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
    values = {"ours": quartiles(ours), "theirs": quartiles(theirs), "ratio": ratio, "turns": len(ours)}
    return {"group": group, "what": what, "unit": unit, **values, **more}


def cases(group: str, options: argparse.Namespace) -> Iterator[tuple[str, list[Job]]]:
    """Name and jobs, ours and theirs, of one group."""
    task = group if group in ("features", "classifier") else "step"
    chosen = [(preset, options.batch or batch, dtype) for preset, batch, dtype in CASES[group][options.device]]
    for preset, batch, dtype in dict.fromkeys(chosen):  # --batch can make two the same
        if preset not in options.preset:
            continue
        job = Job(task=task, preset=preset, batch=batch, dtype=dtype, device=options.device)
        job = replace(job, compiled=group == "compiled", mask_ratio=0.75 if task == "step" else 0.0)
        yield f"{preset}, batch {batch}, {dtype}", [replace(job, library=library) for library in LIBRARIES]


def measure_speed(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Images in a second, and the share that matrix products alone have of the time."""
    for what, jobs in cases(group, options):
        jobs = [faster_attention(job, options.keep_memory) for job in jobs]
        ceiling = replace(jobs[0], library="matmul", compiled=False)
        taken = alternate([*jobs, ceiling], options.turns, options.processes, options.keep_memory)
        ours, theirs, products = ([jobs[0].batch / s for s in seconds(answers)] for answers in taken)
        most = statistics.median(products)
        shares = [round(statistics.median(side) / most, 3) for side in (ours, theirs)]
        attention = [job.attention for job in jobs]
        yield make_row(group, what, "img/s", ours, theirs, attention=attention, shares=shares, ceiling=round(most, 2))


def measure_memory(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Peak of memory with sdpa, each process alone, with glibc's own thresholds: memory that is kept would count."""
    for what, jobs in cases(group, options):
        peaks = [[peak_memory(job) for job in jobs] for _ in range(options.processes)]
        yield make_row(group, what, "MB", *zip(*peaks, strict=True))


def peak_memory(job: Job) -> float:
    """Peak of memory of a process that does a job twice, in MB."""
    ((answer,),) = alternate([job], 1, 1, keep_memory=False)
    return answer["peak_bytes"] / 1e6


def measure_growth(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Time of one image with sdpa, while one thing grows."""
    for field, places, axis, job in GROWTH[options.device]:
        for value, place in places.items():
            grown = replace(job, device=options.device, **{field: value})
            taken = alternate([replace(grown, library=lib) for lib in LIBRARIES], options.turns, 1, options.keep_memory)
            ours, theirs = ([1e3 * s / grown.batch for s in seconds(answers)] for answers in taken)
            constant = f"{job.task}, {job.dtype}" + ("" if field == "batch" else f", batch {job.batch}")
            plot = {"field": field, "axis": f"{axis}\n({constant})", "place": place}
            yield make_row(group, f"{field} {value}", "ms per image", ours, theirs, **plot)


def measure_start(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Import, `from_pretrained` of huge, and converting a huge checkpoint beside copying it."""
    codes = "import mae_hf", "from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel"
    times = [[run_python(code) for code in codes] for _ in range(options.turns)]
    yield make_row(group, "import", "s", *zip(*times, strict=True))
    with tempfile.TemporaryDirectory() as name:
        source, folders = Path(name) / "huge.pth", [Path(name) / library for library in LIBRARIES]
        write_official("huge", source)
        for folder, layout in zip(folders, ("mae_hf", "vit_mae"), strict=True):
            convert(source, folder, layout)
        jobs = [Job(library, "load", folder=str(folder)) for library, folder in zip(LIBRARIES, folders, strict=True)]
        loads = alternate(jobs, options.turns, options.processes, options.keep_memory)
        yield make_row(group, "from_pretrained, huge", "s", *map(seconds, loads))
    conversions, copies, _ = beside_copies("huge", "mae_hf", 3)
    yield make_row(group, "convert huge; on the right, copying the file with md5", "s", conversions, copies)


def run_python(code: str) -> float:
    """Seconds of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


MEASURES = {
    "step": measure_speed,
    "compiled": measure_speed,
    "features": measure_speed,
    "classifier": measure_speed,
    "memory": measure_memory,
    "growth": measure_growth,
    "start": measure_start,
}


def machine(device: str) -> str:
    """Hardware and versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    bf16 = " with AVX512-BF16" if "avx512_bf16" in cpuinfo else ""
    cpu = f"{model[1] if model else platform.machine()}{bf16}, {torch.get_num_threads()} threads"
    hardware = torch.cuda.get_device_name() if device == "cuda" else cpu
    versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return f"{hardware}; {versions}, Python {platform.python_version()}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(MEASURES)}; all of them if none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=PRESETS,
        default=list(PRESETS),
        help="models to compare; growth and start have their own",
    )
    parser.add_argument("--batch", type=int, help="images, in place of the batch sizes in this file")
    parser.add_argument("--turns", type=int, default=5, help="of each process (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="one after the other (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="files to write: .json, .md and, of growth, .png")
    parser.add_argument(
        "--default-malloc",
        dest="keep_memory",
        action="store_false",
        help="leave glibc's memory thresholds as they are: see KEEP_MEMORY in benchmarks/turns.py",
    )
    options = parser.parse_args()
    if unknown := set(options.groups) - set(MEASURES):  # argparse's choices would refuse that there are none
        parser.error(f"unknown groups: {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    if min(options.turns, options.processes, 1 if options.batch is None else options.batch) < 1:
        parser.error("--turns, --processes and --batch must be positive")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    malloc = "keeps freed memory, but for the peaks" if options.keep_memory else "is as it comes"
    settings = f"{options.processes} processes on each side, {options.turns} turns each; glibc's malloc {malloc}"
    report, rows = f"{machine(options.device)}\n\n{settings}", []
    try:
        for group in options.groups or MEASURES:
            for row in MEASURES[group](group, options):
                rows.append(row)
                print(json.dumps(row), flush=True)
    finally:  # what was measured before an error or an interrupt
        print(report, as_table(rows), sep="\n\n")
        if rows and options.output:
            write_report(options.output, report, rows)
    if not rows:
        parser.error(f"none of these groups has a case for {', '.join(options.preset)} on {options.device}")


if __name__ == "__main__":
    main()
