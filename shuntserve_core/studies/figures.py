"""A study's figures, as SVG to be put into a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shuntserve_core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Mapping[str, Any]
"""What `cells.run_cell` returns, without an error."""

COLORS = ("#2f6db0", "#d9822b", "#3f9b6b", "#b5476b", "#7a5ea8", "#8a7a55", "#4aa3b5", "#777777")
INK, FAINT = "#30363d", "#8b949e"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c9d1d9",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e9ec",
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "shuntserve",
    "legend.frameon": False,
}
WIDTH = 4.9
"""Inches of a half-page figure."""


def figures_of(runs: Sequence[Run], measured: Mapping[str, float]) -> list[tuple[str, str, bool]]:
    """(title, SVG, whether it wants the whole width) of an experiment's figures.

    Raises `UserError` without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError(
            "the report needs matplotlib", remedy="pip install 'shuntserve[plot]'"
        ) from None
    mpl.use("Agg")
    labels = [run["label"] for run in runs]
    colors = {label: COLORS[i % len(COLORS)] for i, label in enumerate(labels)}
    with mpl.rc_context(STYLE):
        made = [("Throughput", _throughput(runs, measured, colors), False)]
        if any(run["summary"]["cost_per_million_tokens"] for run in runs):
            made.append(("Cost of a million tokens", _cost(runs, colors), False))
        if any(run["events"] for run in runs):
            made.append(("Over time", _timeline(runs, colors), True))
        made.append(("Time to first token", _distribution(runs, "ttft", colors), False))
        made.append(("Time per output token", _distribution(runs, "tpot", colors), False))
        if len({round(run["summary"]["cost_per_hour"], 2) for run in runs}) > 1:
            made.append(("Cost against throughput", _scatter(runs, colors), False))
        return [(title, _svg(figure), wide) for title, figure, wide in made]


def _svg(figure: Figure) -> str:
    from matplotlib import pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue().partition("?>")[2].partition(">")[2]  # without XML and DOCTYPE


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def _rows(count: int) -> float:
    return 0.8 + 0.38 * max(count, 2)


def _throughput(
    runs: Sequence[Run], measured: Mapping[str, float], colors: Mapping[str, str]
) -> Figure:
    figure, axes = _axes(WIDTH, _rows(len(runs)) + (0.2 if measured else 0))
    labels = [run["label"] for run in runs]
    values = [run["summary"]["requests_per_second"] for run in runs]
    bars = axes.barh(labels, values, color=[colors[label] for label in labels], height=0.62)
    _inside(axes, bars, [f"{value:.2f}" for value in values])
    known = [(label, measured[label]) for label in labels if label in measured]
    if known:
        axes.plot(
            [value for _, value in known],
            [label for label, _ in known],
            "D",
            color=INK,
            markersize=5,
            label="measured",
        )
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2, borderpad=0)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("requests/s")
    axes.tick_params(axis="y", length=0)
    return figure


def _inside(axes: Axes, bars: Any, labels: Sequence[str]) -> None:
    """Figures at the ends of bars, where marks beside the bars do not cover them."""
    for bar, label in zip(bars, labels, strict=True):
        place = (bar.get_width(), bar.get_y() + bar.get_height() / 2)
        axes.annotate(
            label,
            place,
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            color="white",
            fontsize=9,
            fontweight="bold",
        )


def _cost(runs: Sequence[Run], colors: Mapping[str, str]) -> Figure:
    figure, axes = _axes(WIDTH, _rows(len(runs)))
    labels = [run["label"] for run in runs]
    values = [run["summary"]["cost_per_million_tokens"] or 0.0 for run in runs]
    bars = axes.barh(labels, values, color=[colors[label] for label in labels], height=0.62)
    _inside(axes, bars, [f"${value:.2f}" for value in values])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("$ per million tokens, prompts and answers")
    axes.tick_params(axis="y", length=0)
    return figure


def _distribution(runs: Sequence[Run], what: str, colors: Mapping[str, str]) -> Figure:
    figure, axes = _axes(WIDTH, 2.9)
    for run in runs:
        quantiles = run[f"{what}_quantiles"]
        if quantiles:
            shares = [i / (len(quantiles) - 1) for i in range(len(quantiles))]
            low = [max(value, 1e-4) for value in quantiles]
            axes.plot(low, shares, color=colors[run["label"]], label=run["label"], linewidth=1.6)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(True)
    axes.set_ylabel("of requests at most")
    after = ", from when a pipeline takes the request" if what == "ttft" else ""
    axes.set_xlabel(f"seconds{after}")
    axes.legend(fontsize=7.5, loc="lower right", handlelength=1.2, labelspacing=0.25)
    return figure


def _scatter(runs: Sequence[Run], colors: Mapping[str, str]) -> Figure:
    figure, axes = _axes(WIDTH, 2.9)
    for run in runs:
        summary, label = run["summary"], run["label"]
        point = (summary["cost_per_hour"], summary["requests_per_second"])
        axes.plot(*point, "o", color=colors[label], markersize=8, label=label)
    axes.set_xlim(left=0, right=1.1 * max(run["summary"]["cost_per_hour"] for run in runs))
    top = max(run["summary"]["requests_per_second"] for run in runs)
    axes.set_ylim(bottom=0, top=1.2 * top)
    axes.grid(True)
    axes.set_xlabel("$ per hour")
    axes.set_ylabel("requests/s")
    axes.legend(fontsize=8, loc="lower left", handletextpad=0.2)
    return figure


def _timeline(runs: Sequence[Run], colors: Mapping[str, str]) -> Figure:
    """One row a run: finished requests a second, and when nodes were given notice."""
    from matplotlib import pyplot as plt

    figure, rows = plt.subplots(
        len(runs),
        1,
        figsize=(2.08 * WIDTH, 0.5 + 0.95 * len(runs)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, run in zip(rows[:, 0], runs, strict=True):
        line = run["timeline"]
        minutes = [at / 60 for at in line["at"]]
        color = colors[run["label"]]
        axes.fill_between(
            minutes, line["requests_per_second"], step="post", color=color, alpha=0.25, linewidth=0
        )
        axes.step(minutes, line["requests_per_second"], where="post", color=color, linewidth=1.2)
        for at in sorted({note["at"] for note in run["notes"] if note["what"] in STRIKES}):
            axes.axvline(at / 60, color="#c0392b", linewidth=1, linestyle=(0, (3, 2)))
        for begin, end in _down(run):
            axes.axvspan(begin / 60, end / 60, color="#c0392b", alpha=0.09, linewidth=0)
        axes.set_title(run["label"], loc="left", fontsize=9.5, color=color, weight="bold", pad=2)
        axes.grid(True, axis="y")
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
    rows[-1, 0].set_xlabel(
        "minutes (dashed: notices, losses; shaded: fewer pipelines than at the start)"
    )
    figure.supylabel("requests/s", fontsize=9.5)
    return figure


STRIKES = ("interruption notice", "node lost")


def _down(run: Run) -> list[tuple[float, float]]:
    """Spans in which fewer pipelines served than at the start."""
    steps = sorted(
        [(p["from"], 1) for p in run["pipelines"] if p["from"] is not None]
        + [(p["to"], -1) for p in run["pipelines"] if p["to"] is not None]
    )
    full = sum(1 for at, change in steps if at == 0 and change > 0)
    end = max((at for at, _ in steps), default=0.0)
    spans, serving, since = [], 0, None
    for at, change in steps:
        serving += change
        if at >= end:
            break
        if serving < full and at > 0 and since is None:
            since = at
        elif serving >= full and since is not None:
            spans.append((since, at))
            since = None
    if since is not None:
        spans.append((since, end))
    return spans
