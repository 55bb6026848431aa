"""Processes that take turns, and statistics of their times."""

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

# Let glibc keep the memory that a process frees (2.35 or newer; older versions reject the first value and get slower).
# By default, it returns some to the system, by a threshold that follows the largest block freed so far, and gets it
# back page by page: then the times of processes that do the same work differ by a tenth.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**34)}

ROOT = Path(__file__).resolve().parent.parent
Answer = dict[str, float]


def start(job: Job, keep_memory: bool, stack: ExitStack) -> subprocess.Popen[str]:
    """Start a process that runs a job, and return it when it is ready.

    Args:
        job: What the process does in its turns.
        keep_memory: Set `KEEP_MEMORY`; otherwise glibc's own thresholds apply.
        stack: Ends the process when it is closed.

    Raises:
        RuntimeError: If the process ends first.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", json.dumps(asdict(job))]
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    environment |= KEEP_MEMORY if keep_memory else {}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)
    stack.callback(process.communicate)  # waits for the process and closes the pipes
    stack.callback(process.kill)
    read(process)
    return process


def take_turn(process: subprocess.Popen[str]) -> Answer:
    """Let a process take a turn; returns "seconds", and the peak of its memory so far, "peak_bytes".

    Raises:
        RuntimeError: If the process has ended.
    """
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # `read` reports the reason
        process.stdin.write("\n")
    return json.loads(read(process))


def read(process: subprocess.Popen[str]) -> str:
    """Read a line of a process's output; raise `RuntimeError` if the process has ended."""
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"a process ended with status {process.wait()}: {process.args}")
    return line


def alternate(jobs: Sequence[Job], turns: int, processes: int, keep_memory: bool) -> list[list[Answer]]:
    """Let jobs take turns: A B C A B C ...

    Args:
        jobs: Jobs, each in a process of its own.
        turns: Turns of each process.
        processes: Number of times that all processes are started anew.
        keep_memory: See `start`.

    Returns:
        The answers of each job, see `take_turn`.
    """
    answers: list[list[Answer]] = [[] for _ in jobs]
    for _ in range(processes):
        with ExitStack() as stack:
            workers = [start(job, keep_memory, stack) for job in jobs]
            for _ in range(turns):
                for worker, taken in zip(workers, answers, strict=True):
                    taken.append(take_turn(worker))
    return answers


def faster_attention(job: Job, keep_memory: bool) -> Job:
    """Return the job with the faster attention implementation; on a GPU with "sdpa", as "eager" may not fit."""
    if job.device == "cuda":
        return replace(job, attention="sdpa")
    tried = [replace(job, attention=attention) for attention in ("eager", "sdpa")]
    times = [statistics.median(seconds(answers)) for answers in alternate(tried, 3, 1, keep_memory)]
    return tried[times.index(min(times))]


def seconds(answers: Sequence[Answer]) -> list[float]:
    """Return the seconds of each answer."""
    return [answer["seconds"] for answer in answers]


def quartiles(values: Sequence[float]) -> list[float]:
    """Return lower quartile, median and upper quartile, to four digits."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return [float(f"{value:.4g}") for value in found]
