"""The results of `benchmarks.speed` as files: JSON, a table and a plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HEADINGS = {
    "step": "Pretraining step",
    "compiled": "Pretraining step, compiled",
    "features": "Features of whole images",
    "classifier": "Step of a classifier, compared with ViTForImageClassification",
    "memory": "Peak memory of a pretraining step, sdpa",
    "growth": "Growth, sdpa",
    "start": "Before the first step",
}


def write_report(output: Path, heading: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `output`.json, .md and, if there are rows of growth, .png."""
    Path(f"{output}.json").write_text(json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n")
    Path(f"{output}.md").write_text(f"{heading}\n\n{as_table(rows)}")
    if grown := [row for row in rows if row["group"] == "growth"]:
        draw(grown).savefig(f"{output}.png", dpi=120)


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = [
        "| | mae_hf | transformers | mae_hf / transformers | turns | fractions of the ceiling |",
        "|---|---|---|---|---|---|",
    ]
    group = None
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            lines.append(f"| **{HEADINGS[group]}** | | | | | |")
        lines.append("| " + " | ".join(cells(row)) + " |")
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row: median (quartiles) unit, attention."""
    sides = []
    for number, side in enumerate(("ours", "theirs")):
        low, median, high = (f"{value:.{places(row[side][1])}f}" for value in row[side])
        by = f", {row['attention'][number]}" if "attention" in row else ""
        sides.append(f"{median} ({low} to {high}) {row['unit']}{by}")
    low, median, high = row["ratio"]
    fractions = "{:.0%}, {:.0%} of {:.1f} img/s".format(*row["shares"], row["ceiling"]) if "shares" in row else ""
    return [row["what"], *sides, f"**{median:.2f}** ({low:.2f} to {high:.2f})", str(row["turns"]), fractions]


def places(value: float) -> int:
    """Return the number of decimal places that shows three digits."""
    return 0 if value >= 100 else 1 if value >= 10 else 2


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot the milliseconds per image against each field that grows."""
    fields = list(dict.fromkeys(row["field"] for row in rows))
    figure = Figure(figsize=(3.3 * len(fields), 3.6), layout="constrained")
    for axes, field in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields, strict=True):
        draw_growth(axes, [row for row in rows if row["field"] == field])
    figure.axes[0].set_ylabel("milliseconds per image")
    figure.axes[0].legend()
    return figure


def draw_growth(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Plot the rows of one field; both axes start at zero."""
    positions = [row["place"] for row in rows]
    for side, label, style in (("ours", "mae_hf", "o-"), ("theirs", "transformers", "s--")):
        axes.plot(positions, [row[side][1] for row in rows], style, label=label)
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.set_xlabel(rows[0]["axis"])
