"""The pictures that runs and reports draw, from arrays and tables alone; matplotlib only."""

import textwrap

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's colours with wine for their yellow (too faint on white); 8 and 9 have no common factor: 72 looks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = "osD^vPX*<"


def short(text, width=26):
    """The text on at most two lines, for a label."""
    lines = textwrap.wrap(text, width)
    return "\n".join(lines if len(lines) <= 2 else [lines[0], lines[1][: width - 3] + "..."])


@matplotlib.rc_context({"text.parse_math": False})  # a name may hold "$", which must not start a formula
def draw_panels(path, panels, names, caption):
    """Writes one PNG of panels side by side, a colour and marker for each of the names.

    panels: (properties of the axes, table with the columns name, x, y, dx, dy, line style); dx and dy are the arms of
    the error bars, NaN for none; a column style goes before the panel's. Panels with yticks name the methods there and
    have no legend.
    """
    columns, by_row = min(len(panels), 4), "yticks" in panels[0][0]
    rows = -(-len(panels) // columns)
    shown = [name for name in names if any(name in set(points["name"]) for _, points, _ in panels)]
    height = max(1.8, 1.2 + 0.36 * len(shown)) if by_row else 3.0
    legend_columns = 1 if by_row else 1 + (len(shown) - 1) // (10 * rows)
    size = 3 * columns + 2.4 * legend_columns, 0.4 + height * rows + 0.16 * caption.count("\n")
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes, handles = figure.subplots(rows, columns, squeeze=False, sharey=by_row).ravel(), {}
    for ax, (properties, points, style) in zip(axes, panels, strict=False):
        for name, curve in points.groupby("name", observed=True):
            look = shown.index(name)
            handles[name], *_ = ax.errorbar(
                curve["x"], curve["y"], xerr=curve["dx"], yerr=curve["dy"], capsize=3,
                linestyle=curve["style"].iloc[0] if "style" in curve else style,
                color=COLOURS[look % 8], marker=MARKERS[look % 9])  # fmt: skip
        ax.set(**properties)
        if "xticks" not in properties and not by_row:  # costs: the axis starts at zero
            left, right = ax.get_xlim()
            ax.set_xlim(min(0, left), 1.04 * right)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.remove()
    if not by_row and len(handles) > 1:
        figure.legend([handles[name] for name in shown], map(short, shown), loc="outside right upper", frameon=False,
                      fontsize="small", ncols=legend_columns)  # fmt: skip
    figure.supxlabel(caption, fontsize="small")
    figure.savefig(path)


@matplotlib.rc_context({"text.parse_math": False})
def relation_figure(teacher, student, tokens):
    """Figure of the words' relations in one sentence: teacher, student, and where the student is above or below it.

    teacher, student: numpy arrays [T, T], cosines between the words of one layer. tokens: the T words; where they are
    many, some are left out at the axis, so that the rest can be read on a thumbnail.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    step = -(-len(tokens) // 8)
    panels = {"teacher": teacher, "student": student, "difference": student - teacher}
    for ax, (name, values) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        image = ax.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        ax.set_title(name, fontsize=24)
        ax.set_xticks([])
        ax.set_yticks(range(0, len(tokens), step), [token[:10] for token in tokens[::step]], fontsize=18)
    figure.colorbar(image, ax=figure.axes, ticks=(-1, 0, 1)).ax.tick_params(labelsize=20)
    return figure
