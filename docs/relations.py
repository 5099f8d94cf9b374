"""Draws docs/relations.png, the picture at the top of the README: `python docs/relations.py`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle, Wedge

WORD, PAIR, ANGLE = "#0072B2", "#888888", "#D55E00"
CELL = 0.19
DOTS = (0, (1, 1.5))


def node(ax, at, label, cells, below=False):
    """A word's vector: as many cells as the model is wide, with its name above or below it."""
    x, y = at
    for cell in range(cells):
        left = x + (cell - cells / 2) * CELL
        ax.add_patch(Rectangle((left, y - CELL / 2), CELL, CELL, facecolor=WORD, edgecolor="white", zorder=3))
    y, side = (y - 0.22, "top") if below else (y + 0.19, "bottom")
    ax.text(x, y, label, ha="center", va=side, fontsize=19, zorder=4)


def pair(ax, one, other):
    """A pair-wise relation: a dotted line between two vectors."""
    ax.plot(*zip(one, other, strict=True), color=PAIR, linestyle=DOTS, linewidth=2.5, zorder=1)


def angle(ax, i, j, k):
    """A triple-wise relation: the angle at j between its lines to i and k."""
    for end in (i, k):
        ax.plot(*zip(j, end, strict=True), color=ANGLE, linewidth=3.5, zorder=2)
    first, last = sorted(np.degrees(np.arctan2(end[1] - j[1], end[0] - j[0])) for end in (i, k))
    ax.add_patch(Wedge(j, 0.7, first, last, facecolor=ANGLE, alpha=0.35, zorder=2))


def relations(ax, places, names, cells):
    """All pairs of four vectors, and the angle at the second of the first three."""
    for a in range(len(places)):
        for b in range(a):
            pair(ax, places[a], places[b])
    angle(ax, *places[:3])
    for place, name in zip(places, names, strict=True):
        node(ax, place, name, cells, below=place[1] < 1)


def main():
    """Two rows (word relations, layer transforming relations) of two columns (teacher, student)."""
    figure = Figure(figsize=(12, 9.2), dpi=80)
    axes = figure.subplots(2, 2, gridspec_kw={"left": 0, "right": 1, "bottom": 0.13, "top": 0.945, "wspace": 0.02})
    rows = (
        (
            "WR: the words of a sentence, in one layer",
            ("the ($i$)", "cat ($j$)", "sat ($k$)", "down"),
            [(0.5, 0.3), (1.4, 2.1), (4.3, 1.7), (3.5, 0.0)],
        ),
        (
            "LTR: one word, through the layers",
            ("layer $l$", "layer $m$", "layer $o$", "embedding"),
            [(0.9, 1.8), (3.0, 2.2), (4.4, 0.4), (0.7, 0.0)],
        ),
    )
    for row, (title, names, places) in zip(axes, rows, strict=True):
        places = np.array(places)
        turned = (places - 2.2) @ [[0.99, 0.12], [-0.12, 0.99]] * 0.86 + (2.6, 2)  # other vectors, the same relations
        for ax, at, cells in zip(row, (places, turned), (8, 4), strict=True):
            relations(ax, at, names, cells)
            ax.set(xlim=(-0.4, 5.4), ylim=(-0.75, 2.65), aspect="equal")
            ax.axis("off")
        bottom, top = row[0].get_position().intervaly
        figure.text(0.5, bottom + 0.005, title, ha="center", va="center", fontsize=20, fontweight="bold")
        figure.text(0.5, (bottom + top) / 2, "=", ha="center", va="center", fontsize=40, color=ANGLE)
    for x, model in ((0.25, "teacher, wide"), (0.75, "student, narrow")):
        figure.text(x, 0.96, model, ha="center", va="center", fontsize=24, color=WORD, fontweight="bold")
    handles = [
        Line2D([], [], color=PAIR, linestyle=DOTS, linewidth=3, label="pair: how similar"),
        Line2D([], [], color=ANGLE, linewidth=3.5, label="triple: the angle in the middle"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=19, frameon=False)
    figure.savefig(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
