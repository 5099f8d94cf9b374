"""Drawing the pictures of runs and reports, from arrays and tables alone, with matplotlib only."""

import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's colours, with wine for their yellow, which is too faint on white. 8 colours x 9 markers: 72 looks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = "osD^vPX*<"


def short(text, width=26):
    """Return the text on at most two lines, for a label."""
    lines = textwrap.wrap(text, width)
    return "\n".join(lines if len(lines) <= 2 else [lines[0], lines[1][: width - 3] + "..."])


# A "$" in a name must not start a formula. In PDF and SVG, text stays text.
STYLE = {"text.parse_math": False, "pdf.fonttype": 42, "svg.fonttype": "none"}


BENEATH = ("seeds", "threads", "teacher")  # properties of a panel that are no properties of matplotlib's axes


@matplotlib.rc_context(STYLE)
def draw_panels(path, panels, names, caption, formats=("png",)):
    """Write one figure of panels side by side in each of the formats; return the paths. path: its suffix is replaced.

    panels: (properties of the axes, table with the columns name, x, y, dx, dy, line style). dx and dy are the arms of
    the error bars, NaN for none; a column style precedes the panel's. Panels with yticks name the methods there and
    need no legend. Further properties are drawn beneath: seeds, a table (name, x, y) of small points; threads, a table
    (name, seed, x, y) of thin lines; teacher, a score for a dashed line. Each of the names has its colour and marker.
    """
    columns, by_row = min(len(panels), 4), "yticks" in panels[0][0]
    rows = -(-len(panels) // columns)
    shown = [name for name in names if any(name in set(points["name"]) for _, points, _ in panels)]
    height = max(1.8, 1.2 + 0.36 * len(shown)) if by_row else 3.0
    legend_columns = 1 if by_row else 1 + (len(shown) - 1) // (10 * rows)
    width = 3 * columns + 2.4 * legend_columns
    caption = "\n".join(line for part in caption.split("\n") for line in textwrap.wrap(part, int(16 * width)))
    size = width, 0.4 + height * rows + 0.16 * caption.count("\n")
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes, handles = figure.subplots(rows, columns, squeeze=False, sharey=by_row).ravel(), {}
    looks = {name: {"color": COLOURS[i % 8], "marker": MARKERS[i % 9]} for i, name in enumerate(shown)}
    for ax, panel in zip(axes, panels, strict=False):
        handles |= _draw_panel(ax, *panel, looks, by_row)
    for ax in axes[len(panels) :]:
        ax.remove()
    if not by_row and len(handles) > 1:
        named = {name: handles[name] for name in (LINE, *shown) if name in handles}
        place = {"loc": "outside right upper", "ncols": legend_columns}
        figure.legend(named.values(), map(short, named), frameon=False, fontsize="small", **place)
    figure.supxlabel(caption, fontsize="small")
    paths = [path.with_suffix(f".{form}") for form in formats]
    for one in paths:
        figure.savefig(one)
    return paths


def _draw_panel(ax, properties, points, style, looks, by_row):
    """Draw one panel of `draw_panels`; return {name in the legend: handle}."""
    handles = _beneath(ax, properties, looks, by_row)
    for name, curve in points.groupby("name", observed=True):
        look = looks[name] if len(curve) <= 12 else {"color": looks[name]["color"]}
        line = {"linestyle": curve["style"].iloc[0] if "style" in curve else style, **look}
        handles[name], *_ = ax.errorbar(curve["x"], curve["y"], xerr=curve["dx"], yerr=curve["dy"], capsize=3, **line)
    ax.set(**{key: value for key, value in properties.items() if key not in BENEATH})
    if "xticks" not in properties and not by_row:  # the axis of costs starts at zero
        left, right = ax.get_xlim()
        ax.set_xlim(min(0, left), 1.04 * right)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    return handles


LINE = "teacher (line)"  # in the legend


def _beneath(ax, properties, looks, by_row):
    """Draw what lies beneath the means: seeds, thin lines, the teacher's score. Return {name in the legend: handle}."""
    for name, dots in properties["seeds"].groupby("name", observed=True) if "seeds" in properties else ():
        y = dots["y"] - 0.25 if by_row else dots["y"]  # below the bar, which would hide them
        ax.scatter(dots["x"], y, s=14, color=looks[name]["color"], edgecolors="white", linewidths=0.5, zorder=3)
    threads = properties.get("threads")
    for (name, _), thread in threads.groupby(["name", "seed"], observed=True) if threads is not None else ():
        ax.plot(thread["x"], thread["y"], color=looks[name]["color"], alpha=0.35, linewidth=0.8, zorder=1)
    if "teacher" not in properties:
        return {}
    line = ax.axvline if by_row else ax.axhline
    return {LINE: line(properties["teacher"], color="0.35", linestyle=(0, (4, 2)), linewidth=1.2, zorder=1)}


@matplotlib.rc_context({"text.parse_math": False})
def relation_figure(teacher, student, tokens, layers=("", "")):
    """Draw the relations in one sentence: teacher, student, and their difference.

    teacher, student: numpy arrays, [T, T] cosines between the words of one layer, or [T, P] cosines of each word
    between P pairs of layers. tokens: the T words; some of many are left out at the axis, so that a thumbnail can be
    read. layers: of teacher and student, the layer as text, or the P pairs as texts. The colours span the teacher's
    range, so that pictures of several students can be compared.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    step, (low, high) = -(-len(tokens) // 8), teacher_range(teacher, of_words=isinstance(layers[0], str))
    span = high - low
    panels = (
        ("teacher", teacher, layers[0], (low, high)),
        ("student", student, layers[1], (low, high)),
        ("difference", student - teacher, layers[1], (-span, span)),
    )
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (title, values, own, (vmin, vmax)) in zip(axes, panels, strict=True):
        pairs = [] if isinstance(own, str) else own
        aspect = "auto" if pairs else None
        image = ax.imshow(values, vmin=vmin, vmax=vmax, cmap="RdBu_r", interpolation="nearest", aspect=aspect)
        named = own and not pairs and title != "difference"
        ax.set_title(f"{title}\nlayer {own}" if named else title, fontsize=24 if not own or pairs else 20)
        ax.set_xlabel("layers" if pairs else "", fontsize=18)
        every = -(-len(pairs) // 4)
        ax.set_xticks(range(0, len(pairs), every or 1), pairs[:: every or 1], fontsize=18)
        ax.set_yticks(range(0, len(tokens), step), [token[:10] for token in tokens[::step]], fontsize=18)
        if title != "teacher":
            bar = figure.colorbar(image, ax=ax, ticks=(vmin, (vmin + vmax) / 2, vmax), format="%.2f", extend="both")
            bar.ax.tick_params(labelsize=18)
    return figure


def teacher_range(values, of_words):
    """Return (low, high) of most of a teacher's cosines, 0.02 apart or more. of_words: leave out a word with itself."""
    known = values[~np.eye(len(values), dtype=bool)] if of_words and len(values) > 1 else values
    low, high = np.percentile(known, (2, 98))
    middle, half = (low + high) / 2, max(high - low, 0.02) / 2
    return middle - half, middle + half
