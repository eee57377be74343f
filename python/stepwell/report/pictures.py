"""The report's pictures, as SVG that takes its text colour from the page and so reads in light and
dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
from markupsafe import Markup

from stepwell.errors import StepwellError
from stepwell.metrics import classes
from stepwell.report.analysis import Analysis
from stepwell.report.places import BITS
from stepwell.text import printable

SHOWN_STEPS = 300
MOST_CLASSES = 12  # whose counts can be read
COLOURS = ["#3d85c6", "#e07b39", "#3aa76d", "#b565a7", "#c9a227", "#6b7f99"]
FLOAT, INTEGER = "#8a8f98", COLOURS[0]


def require_matplotlib() -> None:
    """StepwellError when it is not installed."""
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError as error:
        raise StepwellError(
            "the report's pictures need matplotlib: pip install 'stepwell[report]'"
        ) from error


def draw(analysis: Analysis) -> dict[str, Markup]:
    """Name -> <svg>, empty where the analysis has no data for it. StepwellError when matplotlib is
    not installed.
    """
    require_matplotlib()
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "stepwell", "font.size": 9, "axes.grid": True}
    )
    matplotlib.rcParams["text.parse_math"] = False  # a name with $ is no formula
    return {picture.__name__: _svg(picture, analysis) for picture in PICTURES}


def _svg(picture: Callable, analysis: Analysis) -> Markup:
    from matplotlib import pyplot as plt

    figure = picture(plt, analysis)
    if figure is None:
        return Markup()
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(
        out,
        format="svg",
        transparent=True,
        bbox_inches="tight",
        metadata={"Date": None, "Creator": None},
    )
    plt.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<text\b", '<text fill="currentColor"', svg.replace("#000000", "currentColor"))
    svg = re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )',
        lambda m: m.group(1) or m.group(2),
        svg,
        count=1,
    )
    return Markup(printable(svg, "\n"))  # XML in which matplotlib has escaped the names


def outputs(plt, analysis: Analysis):
    exact, integer = (y[:SHOWN_STEPS] for y in analysis.curves["outputs"])
    n = min(3, exact.shape[1])
    figure, axes = plt.subplots(n, 1, figsize=(8, 1.0 + 1.5 * n), sharex=True, squeeze=False)
    for k, ax in enumerate(axes[:, 0]):
        ax.plot(exact[:, k], color=FLOAT, lw=4, alpha=0.5, label="float")
        ax.plot(integer[:, k], color=INTEGER, lw=1, label="integer")
        ax.set_ylabel(f"output {k}")
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    axes[-1, 0].set_xlabel("step of the first sequence")
    return figure


def long_run(plt, analysis: Analysis):
    if "long_run" not in analysis.curves:
        return None
    steps, rms, largest = analysis.curves["long_run"]
    figure, ax = plt.subplots(figsize=(8, 2.6))
    ax.plot(steps, np.maximum(largest, 1e-12), color=COLOURS[1], lw=1, label="largest error")
    ax.plot(steps, np.maximum(rms, 1e-12), color=COLOURS[0], lw=1.5, label="RMS error")
    ax.set(yscale="log", xlabel="step", ylabel="|float - integer|")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    return figure


def gates(plt, analysis: Analysis):
    """How much of the time each gate is flat, over the long run."""
    kept = analysis.curves.get("flat")
    if not kept:
        return None
    figure, axes = plt.subplots(
        len(kept), 1, figsize=(8, 0.8 + 0.55 * len(kept)), sharex=True, sharey=True, squeeze=False
    )
    steps = analysis.facts["long_run"]["steps"]
    for (name, (integer, exact)), ax in zip(kept.items(), axes[:, 0], strict=True):
        at = np.linspace(0, steps, len(integer) + 1)[1:]
        ax.fill_between(at, exact, color=FLOAT, alpha=0.35, lw=0, label="float")
        ax.plot(at, integer, color=INTEGER, lw=1, label="integer")
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.set_ylim(0, max(1.0, 1.05 * max(max(integer), max(exact), *ax.get_ylim())))
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    axes[-1, 0].set_xlabel("step; percent of the gate's values where its function is flat")
    return figure


def places(plt, analysis: Analysis):
    found = [place for place in analysis.facts["places"] if place["sqnr_db"] is not None]
    if not found:
        return None
    names = [f"{place['layer']}: {place['place']}" for place in found][::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 0.8 + 0.25 * len(found)), sharey=True)
    left.barh(names, [place["sqnr_db"] for place in found][::-1], color=COLOURS[0])
    left.set_xlabel("SQNR, dB")
    right.barh(names, [place["headroom_bits"] for place in found][::-1], color=COLOURS[2])
    right.set_xlabel("headroom of the format, bits")
    return figure


def layers(plt, analysis: Analysis):
    found = [layer for layer in analysis.facts["layers"] if layer["sqnr_db"] is not None]
    if not found:
        return None
    figure, ax = plt.subplots(figsize=(8, 0.8 + 0.3 * len(found)))
    names = [f"{layer['layer']} ({layer['weight_bits']} bits)" for layer in found][::-1]
    ax.barh(names, [layer["sqnr_db"] for layer in found][::-1], color=COLOURS[0])
    ax.set_xlabel(
        "SQNR of the output with only this layer's weights quantised, dB (the shortest bar costs "
        "most)"
    )
    return figure


def weights(plt, analysis: Analysis):
    kept = analysis.curves["weights"]
    figure, axes = plt.subplots(1, len(kept), figsize=(8, 2.2), squeeze=False, sharey=False)
    for (name, values), ax in zip(kept.items(), axes[0], strict=True):
        limit = analysis.curves["limits"][name]
        bins = np.arange(-limit - 0.5, limit + 1.5, max(1, limit // 32))
        ax.hist(values.ravel(), bins=bins, color=COLOURS[0])
        ax.set(title=name, xlabel=f"integer weight, +-{limit}")
    axes[0, 0].set_ylabel("weights")
    return figure


def activations(plt, analysis: Analysis):
    """One strip a place: where in its format the magnitudes are."""
    kept = analysis.curves["activations"]
    if not kept:
        return None
    figure, ax = plt.subplots(figsize=(8, 0.9 + 0.25 * len(kept)))
    shares = np.array(list(kept.values()))
    for row, strip in enumerate(shares):
        for octave, share in enumerate(strip):
            ax.barh(
                row,
                1,
                left=octave - BITS,
                color=COLOURS[0],
                alpha=float(np.sqrt(share / shares.max())),
                lw=0,
            )
    ax.set_yticks(range(len(kept)), list(kept))
    ax.invert_yaxis()
    ax.set(
        xlim=(-BITS, 0.1),
        xlabel="magnitude: bits below the end of the format (left: all that is smaller)",
    )
    ax.axvline(0, color=COLOURS[1], lw=1)
    return figure


def margins(plt, analysis: Analysis):
    kept = {name: bits for name, bits in analysis.curves["margins"].items() if len(bits)}
    figure, ax = plt.subplots(figsize=(8, 2.4))
    for colour, (name, bits) in enumerate(kept.items()):
        ax.plot(
            np.linspace(0, 100, len(bits)),
            np.sort(bits),
            color=COLOURS[colour % len(COLOURS)],
            label=name,
            marker=".",
            ms=3,
        )
    ax.axhline(0, color=COLOURS[1], lw=1)
    ax.set(xlabel="rows of the layer, tightest first, %", ylabel="bits below 2^31")
    ax.legend(frameon=False, ncols=3)
    return figure


def task(plt, analysis: Analysis):
    metric, targets = analysis.facts["check"]["metric"], analysis.curves["targets"]
    if not metric:
        return None
    every = metric["at"] == "every step"
    exact, integer = ([y if every else y[-1:] for y in side] for side in analysis.curves["all"])
    if metric["name"] in ("accuracy", "f1"):
        return _confusion(plt, targets, exact, integer)
    exact, integer = np.concatenate(exact), np.concatenate(integer)
    t = np.concatenate([np.ravel(t) for t in targets])
    if len(t) % len(exact):
        return None  # only the user's own metric knows what they are
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    t = t.reshape(len(exact), -1)[:, 0]
    axes[0].plot([t.min(), t.max()], [t.min(), t.max()], color=FLOAT, lw=1)
    axes[0].scatter(t, integer[:, 0], s=6, color=COLOURS[0], linewidths=0)
    axes[0].set(xlabel="target", ylabel="integer output")
    axes[1].scatter(t, integer[:, 0] - exact[:, 0], s=6, color=COLOURS[1], linewidths=0)
    axes[1].set(xlabel="target", ylabel="integer - float")
    figure.tight_layout()
    return figure


def _confusion(plt, targets: list, exact: list, integer: list):
    labels, by_float = (v.astype(int) for v in classes(targets, exact))
    predictions = {"float": by_float, "integer": classes(targets, integer)[1].astype(int)}
    n = int(max(labels.max(), np.shape(exact[0])[-1] - 1, 1)) + 1
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
    from matplotlib.colors import to_rgba

    for ax, (name, predicted) in zip(axes, predictions.items(), strict=True):
        counts = np.zeros((n, n), int)
        np.add.at(counts, (labels, predicted), 1)
        shade = 0.75 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        # over the page, light or dark
        ax.imshow([[to_rgba(COLOURS[0], alpha) for alpha in row] for row in shade])
        for (row, column), count in np.ndenumerate(counts):
            if count and n <= MOST_CLASSES:
                ax.text(column, row, str(count), ha="center", va="center", fontsize=7)
        ticks = range(0, n, -(-n // MOST_CLASSES))
        ax.set(title=name, xlabel="predicted", ylabel="label", xticks=ticks, yticks=ticks)
    figure.tight_layout()
    return figure


PICTURES = (outputs, long_run, gates, places, layers, weights, activations, margins, task)
