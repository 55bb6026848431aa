import re
from pathlib import Path

import pytest

from mae_hf.cli import main

ROOT = Path(__file__).resolve().parent.parent
HEADS = ["--num-attention-heads", "4", "--decoder-num-attention-heads", "4"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)


def test_python_of_the_readme_runs_as_written(tmp_path, monkeypatch):
    """Each block by itself, where `make demo` has run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert main(["convert", "examples/demo/mae_demo.pth", "demo/mae-demo", *HEADS]) == 0
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_readme_opens_with_the_two_commands_and_eight_lines_of_python():
    assert [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()] == ["make demo", "make test"]
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) == 8


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()))
def test_links_of_the_readme_lead_somewhere(name):
    assert (ROOT / name).exists()
