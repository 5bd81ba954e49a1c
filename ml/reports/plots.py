"""Draws the numbers of `ml.reports.report_data`: one PNG and one SVG a figure. No training and no tensors.

matplotlib is imported when something is drawn or by `import_matplotlib`, never before: that takes half a second.
Figures are made without its global state (`pyplot`), so any thread may draw.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2f6db3", "#d9742b", "#8a949c"  # distinct without colour vision too
NAMED_CLASSES = 30  # as many names fit an axis
DPI = 120
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # class names are users' text, not markup
    "svg.hashsalt": "denll",
    "svg.fonttype": "none",  # text stays text: half the bytes, and scripts that the font lacks are shown
}

Numbers = dict[str, Any]
Plot = Callable[["Figure", Numbers], bool]  # draws and returns True, or returns False if numbers are missing


def import_matplotlib() -> None:
    """Import all that drawing needs, fonts included, for processes that will be forked from this one."""
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"):
        importlib.import_module(name)


def draw(numbers: Numbers, pictures: NDArray[np.uint8], folder: Path) -> list[str]:
    """Write `figure-<name>.png` and `.svg` of every figure whose numbers are there.

    Args:
        numbers: `ReportData.numbers`, or the same read from JSON.
        pictures: uint8 (P, S, S, 3), the images of `numbers["attention"]`.
        folder: Must exist.

    Returns:
        The names of the figures drawn.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    plots: dict[str, Plot] = {**PLOTS, "attention": lambda figure, numbers: _attention(figure, numbers, pictures)}
    drawn = []
    for name, plot in plots.items():
        with rc_context(STYLE):
            figure = Figure(layout="constrained", dpi=DPI)
            if not plot(figure, numbers):
                continue
            # Straight to the canvas: `savefig` draws every file twice, the first time for the layout alone.
            png: Any = FigureCanvasAgg(figure)
            png.print_png(folder / f"figure-{name}.png")
            figure.set_layout_engine("none")  # it is laid out; doing so again takes as long as drawing
            svg: Any = FigureCanvasSVG(figure)
            svg.print_svg(folder / f"figure-{name}.svg", metadata={"Date": None})  # the same numbers, the same bytes
        drawn.append(name)
    return drawn


def _backgrounds(figure: Figure, numbers: Numbers) -> bool:
    """Fig. 1a beside the accuracy on swapped backgrounds."""
    correlation, swap = numbers.get("correlation"), numbers.get("backgrounds")
    if correlation is None or swap is None:
        return False
    figure.set_size_inches(7, 3)
    left, right = figure.subplots(1, 2)
    _bars(left, {"foreground": correlation["foreground"], "background": correlation["background"]})
    left.set(title="Correlation with the whole image", ylim=(min(0.0, *correlation.values()) - 0.02, 1))
    _bars(right, {"own background": swap["accuracy"], "swapped": swap["swapped_accuracy"]})
    right.set(title=_by("Accuracy", numbers), ylim=(0, 1))
    figure.supxlabel(f"{numbers['images']} images; background: outside the central square", fontsize=8, color=GREY)
    return True


def _by(title: str, numbers: Numbers) -> str:
    """The title, with a note if the images were judged by given labels."""
    return f"{title} (noisy labels)" if numbers.get("labels") == "given" else title


def _bars(axes: Any, values: dict[str, float]) -> None:
    bars = axes.bar(list(values), list(values.values()), width=0.55, color=[BLUE, ORANGE])
    axes.bar_label(bars, fmt="%.2f")


def _reliance(figure: Figure, numbers: Numbers) -> bool:
    """How far predictions move: over images, and by class."""
    swap = numbers.get("backgrounds")
    if swap is None:
        return False
    figure.set_size_inches(7, 3)
    left, right = figure.subplots(1, 2)
    left.hist(swap["per_image"], bins=20, range=(0, 1), color=BLUE)
    left.axvline(swap["background_reliance"], color=ORANGE)
    left.set(title="Background reliance", xlabel="how far the prediction moves", ylabel="images", xlim=(0, 1))
    known = [(c, value) for c, value in enumerate(swap["per_class"]) if value is not None]
    right.barh([c for c, _ in known], [value for _, value in known], color=BLUE)
    right.invert_yaxis()
    right.set(title="By class", xlim=(0, 1))
    _name(right.yaxis, numbers["classes"])
    return True


def _losses(figure: Figure, numbers: Numbers) -> bool:
    """Fig. 1c."""
    histogram = numbers.get("loss_histogram")
    if histogram is None:
        return False
    figure.set_size_inches(5, 3)
    axes = figure.subplots()
    for name, colour in (("right", BLUE), ("wrong", ORANGE)):
        axes.stairs(histogram[name], histogram["edges"], fill=True, alpha=0.6, color=colour, label=f"{name} labels")
    by = "" if histogram["wrong_by"] == "truth" else "; wrong as the ranking flags them"
    axes.set(title="Loss of training labels", xlabel=f"cross-entropy{by}", ylabel="images")
    axes.legend(frameon=False)
    return True


def _confusion(figure: Figure, numbers: Numbers) -> bool:
    if numbers.get("confusion") is None:
        return False
    counts = np.asarray(numbers["confusion"], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return _matrix(figure, shares, numbers["classes"], _by("Predictions by label", numbers), "label", "prediction")


def _transition(figure: Figure, numbers: Numbers) -> bool:
    if numbers.get("transition") is None:
        return False
    return _matrix(
        figure, np.asarray(numbers["transition"]), numbers["classes"], "Estimated noise", "likely class", "given label"
    )


def _matrix(figure: Figure, shares: Any, classes: list[str], title: str, rows: str, columns: str) -> bool:
    side = min(9.0, 3.0 + 0.32 * min(len(classes), NAMED_CLASSES))
    figure.set_size_inches(side + 0.8, side)
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="viridis"), shrink=0.8)
    axes.set(title=title, xlabel=columns, ylabel=rows)
    _name(axes.yaxis, classes)
    _name(axes.xaxis, classes, rotation=90)
    if len(classes) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            colour = "black" if share > 0.6 else "white"
            text = f"{share:.2f}".removeprefix("0")
            axes.text(column, row, text, ha="center", va="center", color=colour, size=6)
    return True


def _name(axis: Any, classes: list[str], rotation: int = 0) -> None:
    """Class names: of every class where they fit, otherwise of evenly spaced ones."""
    named = range(0, len(classes), -(-len(classes) // NAMED_CLASSES))
    axis.set_ticks(named, labels=[classes[number][:24] for number in named], rotation=rotation)


def _reliability(figure: Figure, numbers: Numbers) -> bool:
    all_bins = numbers.get("reliability") or ()
    bins = [entry for entry in all_bins if entry["count"]]
    if not bins:
        return False
    width = 1 / len(all_bins)
    figure.set_size_inches(3.6, 3.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.bar([b["from"] for b in bins], [b["accuracy"] for b in bins], width=width, align="edge", color=BLUE, alpha=0.6)
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o", color=ORANGE, markersize=4)
    axes.set(title=_by("Reliability", numbers), xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    return True


def _attention(figure: Figure, numbers: Numbers, pictures: NDArray[np.uint8]) -> bool:
    """Fig. 1b: each image under its Grad-CAM, with the predicted class above.

    All images are pasted onto one sheet, since drawing axes for each takes long.
    """
    examples = numbers.get("attention")
    if not examples:
        return False
    columns = min(6, len(examples))
    rows = -(-len(examples) // columns)
    side = pictures.shape[1]
    step, head = round(1.06 * side), round(1.2 * side)
    sheet = np.full((rows * head, columns * step, 3), 255, np.uint8)
    figure.set_size_inches(1.5 * columns, 1.5 * rows * head / step)
    axes = figure.subplots()
    axes.set_axis_off()
    for number, (example, picture) in enumerate(zip(examples, pictures, strict=True)):
        top, left = number // columns * head + head - side, number % columns * step
        sheet[top : top + side, left : left + side] = (
            picture.astype(float) + _colourize(example["grad_cam"], side)
        ) / 2
        is_right = example["answer"] == example["label"]
        name = numbers["classes"][example["answer"]][:16]
        axes.text(left + side / 2, top - 0.05 * side, name, ha="center", size=8, color=BLUE if is_right else ORANGE)
    axes.imshow(sheet)
    return True


def _colourize(attention: list[list[float]], side: int) -> NDArray[np.float64]:
    """Attention (h, w) in [0, 1] as colours (S, S, 3) in [0, 255], enlarged smoothly."""
    from matplotlib import colormaps

    small = Image.fromarray(np.asarray(attention, np.float32))
    large = np.asarray(small.resize((side, side), Image.Resampling.BILINEAR))
    return np.asarray(colormaps["viridis"](large)[..., :3] * 255, np.float64)


PLOTS: dict[str, Plot] = {
    "backgrounds": _backgrounds,
    "reliance": _reliance,
    "losses": _losses,
    "confusion": _confusion,
    "reliability": _reliability,
    "transition": _transition,
}
