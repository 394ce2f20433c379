"""The engine benchmark's JSON as a picture: `python -m benchmarks.plot FIGURES.json PLOT.svg`."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

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
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text())["rounds"], Path(sys.argv[2]))
