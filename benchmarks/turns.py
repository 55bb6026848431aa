"""Processes that take turns, and what their times say."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.worker import Job

# Let glibc keep the memory that a process frees (2.35 or newer; older ones refuse the first value and are slower then).
# By default it gives some back, by a threshold that follows the largest block freed so far, and takes it again page by
# page: processes that do the same work then differ by a tenth.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**34)}

ROOT = Path(__file__).resolve().parent.parent
Answer = dict[str, float]


def start(job: Job, keep_memory: bool, stack: ExitStack) -> subprocess.Popen[str]:
    """Start the process of a job, to be ended with the stack, and return it when it is ready.

    Args:
        job: What it does.
        keep_memory: Set `KEEP_MEMORY` for it; else, glibc's own thresholds.
        stack: What ends it.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", json.dumps(asdict(job))]
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    environment |= KEEP_MEMORY if keep_memory else {}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)
    stack.callback(process.communicate)  # waits for it, and closes the pipes
    stack.callback(process.kill)
    read(process)
    return process


def take_turn(process: subprocess.Popen[str]) -> Answer:
    """Let a process take a turn; return its "seconds", and the peak of memory so far, "peak_bytes"."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # reading says why
        process.stdin.write("\n")
    return json.loads(read(process))


def read(process: subprocess.Popen[str]) -> str:
    """Read a line that a process writes; raise `RuntimeError` if it has ended."""
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"a process ended with status {process.wait()}: {process.args}")
    return line


def alternate(jobs: Sequence[Job], turns: int, processes: int, keep_memory: bool) -> list[list[Answer]]:
    """Let jobs take turns, A B C A B C ..., in so many generations of processes; return the answers of each job."""
    answers: list[list[Answer]] = [[] for _ in jobs]
    for _ in range(processes):
        with ExitStack() as stack:
            workers = [start(job, keep_memory, stack) for job in jobs]
            for _ in range(turns):
                for worker, taken in zip(workers, answers, strict=True):
                    taken.append(take_turn(worker))
    return answers


def faster_attention(job: Job, keep_memory: bool) -> Job:
    """Give a job the attention implementation that is faster for it; on a GPU "sdpa", as "eager" may not fit."""
    if job.device == "cuda":
        return replace(job, attention="sdpa")
    tried = [replace(job, attention=attention) for attention in ("eager", "sdpa")]
    times = [statistics.median(seconds(answers)) for answers in alternate(tried, 3, 1, keep_memory)]
    return tried[times.index(min(times))]


def seconds(answers: Sequence[Answer]) -> list[float]:
    """Seconds of the turns."""
    return [answer["seconds"] for answer in answers]


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, to four digits."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return [float(f"{value:.4g}") for value in found]
