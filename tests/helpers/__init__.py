"""What the tests share: paths, the tiny model, its heads, and child processes whose exit status is checked."""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests" / "data" / "reference"
PROGRAMS = ROOT / "tests" / "programs"
DEMO = ROOT / "examples" / "demo"
CHELSEA = DEMO / "chelsea.png"  # a photograph
TINY = {  # the model of the golden values in tests/data/reference/tiny
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
}
HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}  # arguments of convert and inspect
HEAD_OPTIONS = ["--num-attention-heads", "4", "--decoder-num-attention-heads", "4"]  # the same for the command line


def run_command(*command, status=0, cwd=ROOT, env=None):
    """Run a command in a child process.

    Args:
        command: The program and its arguments; every part is converted to a string.
        status: The exit status that is expected; None accepts any.
        cwd: Working directory.
        env: The whole environment; that of the tests if None.
    Returns:
        The `CompletedProcess`, with `stdout` and `stderr` as text.
    Raises:
        AssertionError: If the exit status is another one; the message ends with what the process printed.
    """
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    printed = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert status in (None, done.returncode), f"{shlex.join(command)}: exit status {done.returncode}\n{printed}"
    return done


def run_python(*arguments, python=sys.executable, **how):
    """Run Python with these arguments, such as `"-m", "mae_hf.cli", "inspect", path`; see `run_command`."""
    return run_command(python, *arguments, **how)


def run_program(name, *arguments, flags=(), **how):
    """Run tests/programs/`name`.py with these arguments, and `flags` for Python itself; see `run_command`."""
    return run_python(*flags, PROGRAMS / f"{name}.py", *arguments, **how)
