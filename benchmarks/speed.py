"""Speed and memory compared with transformers' ViTMAE on this machine, as a table and a plot.

    make bench
    python -m benchmarks.speed step compiled --device cuda --output my-gpu

Two processes take turns, with a third that computes only the matrix products of the linear layers: the ceiling. The
numbers are medians with quartiles; a ratio is that of two successive turns. On a CPU, each library uses the attention
implementation that is faster for it, except for memory and growth, which use "sdpa". "bfloat16" is autocast. A step is
a forward and a backward pass.
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

from benchmarks.conversion import compare_with_copies, convert, write_checkpoint
from benchmarks.report import as_table, write_report
from benchmarks.turns import alternate, faster_attention, quartiles, seconds
from benchmarks.worker import Job
from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.configuration_mae import PRESETS

LIBRARIES = ("mae_hf", "transformers")
BF16 = "bfloat16"
SIZES = ("base", "large", "huge")  # measured by default: those of the paper
# Size, batch and dtype of the sizes of the paper; every other size is measured like base. All groups together take half
# an hour on two cores; on a GPU they need tens of gigabytes.
STEPS = {
    "cpu": [("base", 8, "float32"), ("base", 8, BF16), ("base", 32, BF16), ("large", 8, BF16), ("huge", 4, BF16)],
    "cuda": [("base", 1024, BF16), ("large", 512, BF16), ("huge", 256, BF16)],
}
COMPILED = {"cpu": [("base", 8, BF16)], "cuda": STEPS["cuda"]}
FEATURES = {"cpu": [("base", 8, "float32"), ("base", 8, BF16)], "cuda": STEPS["cuda"]}
CLASSIFIER = {"cpu": [("base", 8, BF16)], "cuda": STEPS["cuda"]}
MEMORY = {"cpu": [("base", 8, BF16), ("base", 32, BF16), ("large", 8, BF16)], "cuda": STEPS["cuda"]}
CASES = {"step": STEPS, "compiled": COMPILED, "features": FEATURES, "classifier": CLASSIFIER, "memory": MEMORY}
# batches to compare, and jobs of which one field grows
GROWTH = {
    "cpu": ((1, 2, 4, 8, 16), Job(task="features"), Job(dtype=BF16, batch=4)),
    "cuda": ((16, 32, 64, 128, 256), Job(task="features", batch=256), Job(dtype=BF16, batch=128)),
}

Row = dict[str, Any]


def make_row(group: str, what: str, unit: str, ours: Sequence[float], theirs: Sequence[float], **more: Any) -> Row:
    """Return a row of the table: the medians and quartiles of values measured in turns, and of their ratios."""
    ratio = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
    values = {"ours": quartiles(ours), "theirs": quartiles(theirs), "ratio": ratio, "turns": len(ours)}
    return {"group": group, "what": what, "unit": unit, **values, **more}


def batches_and_dtypes(group: str, device: str, size: str) -> list[tuple[int, str]]:
    """Return the batches and dtypes with which a group measures a size on a device, possibly none."""
    measured_as = size if size in SIZES else "base"
    return [(batch, dtype) for name, batch, dtype in CASES[group][device] if name == measured_as]


def cases(group: str, options: argparse.Namespace) -> Iterator[tuple[str, list[Job]]]:
    """Yield the name and the jobs, of both libraries, of each row of a group."""
    task = group if group in ("features", "classifier") else "step"
    for size in options.preset:
        chosen = [(options.batch or batch, dtype) for batch, dtype in batches_and_dtypes(group, options.device, size)]
        for batch, dtype in dict.fromkeys(chosen):  # --batch can make two equal
            job = Job(task=task, preset=size, batch=batch, dtype=dtype, device=options.device)
            job = replace(job, compiled=group == "compiled", mask_ratio=0.75 if task == "step" else 0.0)
            yield f"{size}, batch {batch}, {dtype}", [replace(job, library=library) for library in LIBRARIES]


def measure_speed(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Measure images per second, and as a fraction of the ceiling."""
    for what, jobs in cases(group, options):
        jobs = [faster_attention(job, options.keep_memory) for job in jobs]
        ceiling = replace(jobs[0], library="matmul", compiled=False)
        taken = alternate([*jobs, ceiling], options.turns, options.processes, options.keep_memory)
        ours, theirs, products = ([jobs[0].batch / s for s in seconds(answers)] for answers in taken)
        ceiling_speed = statistics.median(products)
        fractions = [round(statistics.median(side) / ceiling_speed, 3) for side in (ours, theirs)]
        more = {"attention": [job.attention for job in jobs], "shares": fractions}
        yield make_row(group, what, "img/s", ours, theirs, ceiling=round(ceiling_speed, 2), **more)


def measure_memory(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Measure the peak of memory with "sdpa", of each process alone.

    glibc's own thresholds apply: memory that it keeps would count.
    """
    for what, jobs in cases(group, options):
        peaks = [[peak_memory(job) for job in jobs] for _ in range(options.processes)]
        yield make_row(group, what, "MB", *zip(*peaks, strict=True))


def peak_memory(job: Job) -> float:
    """Return the peak of memory of a process that runs a job twice, in MB."""
    ((answer,),) = alternate([job], 1, 1, keep_memory=False)
    return answer["peak_bytes"] / 1e6


def million_parameters(size: str) -> float:
    """Return the number of parameters of a pretraining model, in millions."""
    with torch.device("meta"):
        return round(MAEForPreTraining(MAEConfig.from_preset(size)).num_parameters() / 1e6, 1)


def growth(device: str) -> list[tuple[str, dict[Any, float], str, Job]]:
    """Return what grows: a field of a job, its values with their positions on the axis, the axis label, and the job."""
    batches, features, step = GROWTH[device]
    return [
        ("mask_ratio", {r: 1 - r for r in (0.0, 0.25, 0.5, 0.75, 0.9)}, "fraction of visible patches", features),
        ("image_size", {s: s**2 / 1e3 for s in (112, 224, 336, 448)}, "pixels of an image / 1000", step),
        ("batch", {n: n for n in batches}, "images in a batch", step),
        ("preset", {size: million_parameters(size) for size in SIZES}, "million parameters", step),
    ]


def measure_growth(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Measure the time of one image with "sdpa" while one field of the job grows."""
    for field, positions, axis, job in growth(options.device):
        for value, position in positions.items():
            grown = replace(job, device=options.device, **{field: value})
            taken = alternate([replace(grown, library=lib) for lib in LIBRARIES], options.turns, 1, options.keep_memory)
            ours, theirs = ([1e3 * s / grown.batch for s in seconds(answers)] for answers in taken)
            constant = f"{job.task}, {job.dtype}" + ("" if field == "batch" else f", batch {job.batch}")
            plot = {"field": field, "axis": f"{axis}\n({constant})", "place": position}
            yield make_row(group, f"{field} {value}", "ms per image", ours, theirs, **plot)


def measure_start(group: str, options: argparse.Namespace) -> Iterator[Row]:
    """Measure the import, `from_pretrained` of huge, and converting a huge checkpoint compared with copying it."""
    codes = "import mae_hf", "from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel"
    times = [[run_python(code) for code in codes] for _ in range(options.turns)]
    yield make_row(group, "import", "s", *zip(*times, strict=True))
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "huge.pth"
        folders = [Path(name) / library for library in LIBRARIES]
        write_checkpoint("huge", source)
        for folder, layout in zip(folders, ("mae_hf", "vit_mae"), strict=True):
            convert("huge", source, folder, layout)
        jobs = [Job(library, "load", folder=str(folder)) for library, folder in zip(LIBRARIES, folders, strict=True)]
        loads = alternate(jobs, options.turns, options.processes, options.keep_memory)
        yield make_row(group, "from_pretrained, huge", "s", *map(seconds, loads))
    conversions, copies, _ = compare_with_copies("huge", "mae_hf", 3)
    yield make_row(group, "convert huge; on the right, copying the file with md5", "s", conversions, copies)


def run_python(code: str) -> float:
    """Run code in a Python process; returns the seconds."""
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
    """Return the hardware and the versions of the libraries in one line."""
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
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(MEASURES)} (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=PRESETS,
        default=list(SIZES),
        help="sizes to compare (default: the paper's); growth and start have their own",
    )
    parser.add_argument("--batch", type=int, help="images per batch, instead of the batches in this file")
    parser.add_argument("--turns", type=int, default=5, help="turns of each process (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="per library, in succession (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="files to write: .json, .md and, for growth, .png")
    parser.add_argument(
        "--default-malloc",
        dest="keep_memory",
        action="store_false",
        help="keep glibc's own memory thresholds: see KEEP_MEMORY in benchmarks/turns.py",
    )
    options = parser.parse_args()
    if unknown := set(options.groups) - set(MEASURES):  # argparse's choices would not allow none
        parser.error(f"unknown groups: {', '.join(sorted(unknown))}; known: {', '.join(MEASURES)}")
    if min(options.turns, options.processes, 1 if options.batch is None else options.batch) < 1:
        parser.error("--turns, --processes and --batch must be positive")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    malloc = "keeps freed memory, except for the peaks" if options.keep_memory else "has its own thresholds"
    settings = f"{options.processes} processes per library, {options.turns} turns each; glibc's malloc {malloc}"
    report = f"{machine(options.device)}\n\n{settings}"
    rows = []
    try:
        for group in options.groups or MEASURES:
            for row in MEASURES[group](group, options):
                rows.append(row)
                print(json.dumps(row), flush=True)
    finally:  # also report what was measured before an error or an interrupt
        print(report, as_table(rows), sep="\n\n")
        if rows and options.output:
            write_report(options.output, report, rows)
    if not rows:
        parser.error(f"these groups do not measure {', '.join(options.preset)} on {options.device}")


if __name__ == "__main__":
    main()
