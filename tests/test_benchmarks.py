"""benchmarks/: both sides of a comparison do the same work, every size can be measured, and reports are written."""

import argparse
import json

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conversion import compare_with_copies
from benchmarks.turns import alternate
from benchmarks.worker import Job, matmul_turn
from mae_hf.configuration_mae import PRESETS
from mae_hf.conversion.layouts import LAYOUTS
from tests.helpers import run_python


def test_the_ceiling_has_the_products_of_every_linear_layer():
    step = Job(preset="base", batch=2).products()
    assert len(step) == 4 * 12 + 4 * 8 + 2  # four per block, and two around the blocks of the decoder
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


def test_failed_process_is_named():
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
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint_of_a_size_without_released_files_is_converted(layout):
    conversions, copies, peak = compare_with_copies("tiny", layout, 1)
    assert len(conversions) == len(copies) == 1 and min(*conversions, *copies) > 0 and peak > 1e6


def what_is_measured(group, device, *sizes):
    from benchmarks import speed  # needs matplotlib

    return [what for what, _ in speed.cases(group, argparse.Namespace(preset=sizes, batch=None, device=device))]


@pytest.mark.heavy
def test_default_steps_are_those_of_the_sizes_of_the_paper():
    from benchmarks.speed import SIZES, STEPS

    for device, cases in STEPS.items():
        assert what_is_measured("step", device, *SIZES) == [f"{s}, batch {b}, {d}" for s, b, d in cases]


@pytest.mark.heavy
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("group", ["step", "compiled", "features", "classifier", "memory"])
def test_other_sizes_are_measured_like_base(group, device):
    base = what_is_measured(group, device, "base")
    others = [size for size in PRESETS if size not in ("base", "large", "huge")]
    assert base and others
    for size in others:
        assert what_is_measured(group, device, size) == [what.replace("base", size) for what in base]


@pytest.mark.parametrize("size", PRESETS)
def test_both_libraries_build_every_size(size):
    with torch.device("meta"):
        ours, theirs = (Job(library, preset=size).make_model() for library in ("mae_hf", "transformers"))
    assert ours.num_parameters() == theirs.num_parameters()


@pytest.mark.heavy
def test_growth_over_sizes_is_drawn_by_their_parameters():
    from benchmarks.speed import growth

    (positions,) = [positions for field, positions, *_ in growth("cpu") if field == "preset"]
    assert positions == {"base": 111.9, "large": 329.5, "huge": 657.1}


@pytest.mark.heavy
def test_speed_of_both_libraries_is_measured_and_written_as_a_table(tmp_path):
    command = ["-m", "benchmarks.speed", "features", "--device", "cpu", "--preset", "base", "tiny"]
    run_python(*command, "--batch", "1", "--turns", "2", "--processes", "1", "--output", tmp_path / "cpu")
    report = json.loads((tmp_path / "cpu.json").read_text())
    assert "transformers" in report["heading"] and "2 turns" in report["heading"]
    rows = report["rows"]
    cases = [(size, dtype) for size in ("base", "tiny") for dtype in ("float32", "bfloat16")]
    assert [row["what"] for row in rows] == [f"{size}, batch 1, {dtype}" for size, dtype in cases]
    for row in rows:
        assert row["turns"] == 2 and row["ceiling"] > 0
        assert row["ours"] == sorted(row["ours"]) and row["ratio"][0] > 0 and min(row["shares"]) > 0
        assert set(row["attention"]) <= {"eager", "sdpa"}
    table = (tmp_path / "cpu.md").read_text().splitlines()
    assert sum(line.startswith(("| base, batch 1", "| tiny, batch 1")) for line in table) == 4


@pytest.mark.heavy
def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    from benchmarks import report, speed  # needs matplotlib

    job = Job(task="features", batch=1)
    monkeypatch.setattr(speed, "growth", lambda device: [("mask_ratio", {0.0: 1.0, 0.75: 0.25}, "visible", job)])
    whole, visible = speed.measure_growth("growth", argparse.Namespace(device="cpu", keep_memory=True, turns=3))
    assert visible["ours"][1] < whole["ours"][1] and visible["theirs"][1] < whole["theirs"][1]
    report.write_report(tmp_path / "growth", "a machine", [whole, visible])
    with Image.open(tmp_path / "growth.png") as figure:
        assert min(figure.size) > 100
