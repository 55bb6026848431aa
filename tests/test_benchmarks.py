import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.turns import alternate
from benchmarks.worker import Job, matmul_turn

ROOT = Path(__file__).resolve().parent.parent


def test_the_ceiling_has_the_products_of_every_linear_layer():
    step = Job(preset="base", batch=2).products()
    assert len(step) == 4 * 12 + 4 * 8 + 2  # four in each block, and those before and after the decoder's blocks
    assert step[0] == (2 * 50, 768, 3 * 768) and step[-1] == (2 * 197, 512, 768)
    features = Job(task="features", preset="large", mask_ratio=0.0).products()
    assert len(features) == 4 * 24 and {rows for rows, _, _ in features} == {8 * 197}


@pytest.mark.parametrize(("task", "passes"), [("step", 3), ("features", 1), ("classifier", 3)])
def test_the_ceiling_computes_the_products_of_all_passes(task, passes):
    job = Job("matmul", task, batch=2, mask_ratio=0.0, device="meta")
    turn = matmul_turn(job)
    with FlopCounterMode(display=False) as counter:
        turn()
    assert counter.get_total_flops() == passes * sum(2 * a * b * c for a, b, c in job.products())


def test_a_process_that_fails_is_named():
    bad = Job(attention="no such attention", device="meta")
    with pytest.raises(RuntimeError, match="ended with status 1.*no such attention"):
        alternate([bad], 1, 1, keep_memory=False)


def test_both_sides_do_the_same_work():
    for task, mask_ratio in (("step", 0.75), ("features", 0.0), ("features", 0.75), ("classifier", 0.0)):
        flops = []
        for library in ("mae_hf", "transformers"):
            job = Job(library, task, batch=2, mask_ratio=mask_ratio, attention="eager")
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                model = job.make_model()
                model(**job.inputs())
            assert model.training == job.trains
            attention = [module for module in model.modules() if hasattr(module, "qkv") or hasattr(module, "q_proj")]
            assert attention
            assert {module.config._attn_implementation for module in attention} == {"eager"}
            flops.append(counter.get_total_flops())
        assert flops[0] == flops[1]


@pytest.mark.heavy
def test_speed_is_measured_on_both_sides_and_written_as_a_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.speed", "features", "--device", "cpu"]
    options = ["--batch", "1", "--turns", "2", "--processes", "1", "--output", tmp_path / "cpu"]
    subprocess.run([*command, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((tmp_path / "cpu.json").read_text())
    assert "transformers" in report["heading"] and "2 turns" in report["heading"]
    rows = report["rows"]
    assert [row["what"] for row in rows] == ["base, batch 1, float32", "base, batch 1, bfloat16"]
    for row in rows:
        assert row["turns"] == 2 and row["ceiling"] > 0
        assert row["ours"] == sorted(row["ours"]) and row["ratio"][0] > 0 and min(row["shares"]) > 0
        assert set(row["attention"]) <= {"eager", "sdpa"}
    table = (tmp_path / "cpu.md").read_text().splitlines()
    assert sum(line.startswith("| base, batch 1") for line in table) == 2


@pytest.mark.heavy
def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    from benchmarks import report, speed  # the drawing needs matplotlib

    job = Job(task="features", batch=1)
    monkeypatch.setattr(speed, "GROWTH", {"cpu": [("mask_ratio", {0.0: 1.0, 0.75: 0.25}, "visible", job)]})
    whole, visible = speed.measure_growth("growth", argparse.Namespace(device="cpu", keep_memory=True, turns=3))
    assert visible["ours"][1] < whole["ours"][1] and visible["theirs"][1] < whole["theirs"][1]
    report.write_report(tmp_path / "growth", "a machine", [whole, visible])
    with Image.open(tmp_path / "growth.png") as picture:
        assert min(picture.size) > 100
