"""A benchmark's JSON as a picture, the engine's or overload's: `python -m benchmarks.plot FIGURES.json PLOT.svg`."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

KINDS = ("text", "fresh picture", "same picture")
COLOURS = {"qwen3vl-compat": "#2a6f97", "transformers serve": "#c9a227"}


def draw(rounds: list[dict[str, dict[str, dict[str, Any]]]], target: Path) -> None:
    """Median tokens a second by workload and number of clients, each server a colour; the bars say the figure."""
    mpl.rcParams["svg.hashsalt"] = "engine"
    figure, panels = plt.subplots(1, len(KINDS), figsize=(10, 3.2), sharey=True)
    for panel, kind in zip(panels, KINDS, strict=True):
        for offset, (server, colour) in enumerate(COLOURS.items()):
            for place, clients in enumerate((1, 8, 32)):
                name = f"{kind}, {clients} at once"
                each = [found[server][name]["tokens/s"] for found in rounds if name in found.get(server, {})]
                if each:
                    value = statistics.median(each)
                    label = server if place == 0 and kind == KINDS[0] else None
                    panel.bar(place + 0.4 * offset, value, 0.38, color=colour, label=label)
                    panel.text(place + 0.4 * offset, value, f"{value:.0f}", ha="center", va="bottom", fontsize=8)
        panel.set_xticks([0.2, 1.2, 2.2], ["1 client", "8", "32"])
        panel.set_title(kind, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("tokens/s")
    figure.legend(loc="upper right", fontsize=8, ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    _save(figure, target)


def draw_overload(found: dict[str, Any], target: Path) -> None:
    """Answers a second by load, how long an answer and a refusal take, and what a flood leaves of each quiet tenant."""
    mpl.rcParams["svg.hashsalt"] = "overload"
    rows = [row for row in found["open"] if not row["retries"]]
    loads = [row["load"] for row in rows]
    figure, (done, took, shares) = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=(4, 4, 3))
    done.axhline(found["capacity"], color="#999999", linewidth=0.8, linestyle=":")
    done.plot(loads, [row["goodput/s"] for row in rows], "o-", color="#2a6f97")
    done.set_ylim(0, 1.2 * found["capacity"])
    done.set_title("answers in time, a second", fontsize=10)
    for name, colour in (("answered", "#2a6f97"), ("refused", "#c9a227")):
        for share, style in (("p50", "o-"), ("p99", "o:")):
            label = f"{name}, {share}"
            took.plot(
                loads, [row[f"{name} {share} ms"] for row in rows], style, color=colour, label=label, markersize=3
            )
    took.set_yscale("log")
    took.set_title("milliseconds", fontsize=10)
    took.legend(fontsize=7, frameon=False, loc="center left")
    for panel in (done, took):
        panel.set_xscale("log")
        panel.set_xticks(loads, [f"{load:g}" if load != 0.9 else "" for load in loads], fontsize=8)
        panel.tick_params(axis="x", which="minor", length=0, labelsize=0)
        panel.set_xlabel("load, times what it can do", fontsize=8)
    quiet = [row for row in found["flood"] if row["share %"] is not None]
    shares.bar(range(len(quiet)), [row["share %"] for row in quiet], 0.6, color="#2a6f97")
    shares.set_xticks(range(len(quiet)), [row["tenant"] for row in quiet], rotation=30, fontsize=8)
    shares.set_title("beside a flood, % of alone", fontsize=10)
    for panel in (done, took, shares):
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, target)


def _save(figure: Figure, target: Path) -> None:
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


if __name__ == "__main__":
    figures = json.loads(Path(sys.argv[1]).read_text())
    if "rounds" in figures:
        draw(figures["rounds"], Path(sys.argv[2]))
    else:
        draw_overload(figures, Path(sys.argv[2]))
