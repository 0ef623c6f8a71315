"""The report as one self-contained HTML page, and its charts as PNG files."""

import html
import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rpo_verl.tools.report.charts import DISCARDED, Chart, Line, axis_range, build_charts, gaps, known, lost, totals
from rpo_verl.tools.report.runs import STEP_TIME, Run, differing_settings

#: Colour-blind safe (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 1100px;
       padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
h1, h2, p { overflow-wrap: anywhere; }
p.note { color: #555; margin: 0 0 .5rem; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; min-width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.switch { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; }
.switch button { font: inherit; font-size: .85rem; padding: .25rem .75rem; border: 1px solid #888; border-radius: 1rem;
                 background: #fff; cursor: pointer; }
.switch button[aria-pressed=true] { background: #0072B2; border-color: #0072B2; color: #fff; }
.view[hidden] { display: none; }
.plot { width: 100%; height: 420px; }
"""

SCRIPT = """
for (const chart of document.querySelectorAll('section.chart')) {
  const buttons = [...chart.querySelectorAll('.switch button')], views = [...chart.querySelectorAll('.view')];
  buttons.forEach((button, i) => button.addEventListener('click', () => {
    buttons.forEach((other, j) => other.setAttribute('aria-pressed', String(i === j)));
    views.forEach((view, j) => { view.hidden = i !== j; });
    Plotly.Plots.resize(views[i].querySelector('.plotly-graph-div'));
  }));
}
"""


def write_report(runs: list[Run], out: Path) -> list[Path]:
    """Write the page to `out`, and a PNG file for every view of a chart beside it.

    Returns:
        all written files, the page first.
    """
    charts, colours = build_charts(runs), _colours(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(runs, charts), encoding="utf-8", errors="xmlcharrefreplace")
    # A name with dollar signs is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        return [out, *(path for chart in charts for path in _draw(chart, colours, out))]


def render(runs: list[Run], charts: list[Chart]) -> str:
    """Render the page. It loads nothing from elsewhere."""
    colours = _colours(runs)
    sections = [_section(chart, colours) for chart in charts]
    body = [
        f"<h1>{html.escape(', '.join(colours))}</h1>",
        _totals_table(runs),
        "".join(f"<p class=note>{html.escape(caution)}</p>" for caution in cautions(runs)),
        *sections,
        _settings(runs),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>rpo-verl report</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body>{''.join(body)}<script>{SCRIPT}</script></body></html>\n"
    )


def _colours(runs: list[Run]) -> dict[str, str]:
    """Assign each label one colour for all charts."""
    labels = dict.fromkeys(run.label for run in runs)
    return {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _totals_table(runs: list[Run]) -> str:
    rows = totals(runs)

    def show(name: str, value: float | str | None) -> str:
        if value is None or isinstance(value, str):
            return value or "–"
        return f"{value:.3f}" if "accuracy" in name else f"{value:,.0f}"

    return _table(list(rows[0]), [[show(name, value) for name, value in row.items()] for row in rows])


def cautions(runs: list[Run]) -> list[str]:
    """List the gaps in the figures, a sentence or two each."""
    notes = []
    for run in runs:
        first = min(step for step, metrics in run.steps.items() if STEP_TIME in metrics)
        if first > 1:
            notes.append(f"{run.path} begins with step {first}: veRL's file logger starts over when a run resumes.")
        if losses := lost(run):
            counts = "; ".join(f"{count:,.0f} {what}" for what, count in losses.items())
            notes.append(f"{run.path} lost to failures: {counts}.")
        discarded = any(known(metrics.get(name, 0.0)) for metrics in run.steps.values() for name in DISCARDED)
        if discarded and not run.settings and "rpo/tokens/reused_total" not in run.steps[first]:
            notes.append(f"{run.path}: without settings, generated tokens exclude discarded groups.")
        notes += gaps(run)
    return notes


def _settings(runs: list[Run]) -> str:
    head = "<h2>Settings in which the runs differ</h2>"
    without = [str(run.path) for run in runs if not run.settings]
    if without:
        head += (
            f"<p class=note>No settings, or those of several runs, in {html.escape(', '.join(without))}. "
            "Give each run its own folder, with hydra.run.dir in it.</p>"
        )
    differing = differing_settings([run for run in runs if run.settings])
    if not differing:
        return head
    header = ["", *(run.label for run in runs if run.settings)]
    return head + _table(header, [[key, *map(str, values)] for key, values in differing.items()])


def _section(chart: Chart, colours: dict[str, str]) -> str:
    figures = [_bars(chart)] if chart.bars else [_lines(chart, view, colours) for view in chart.views]
    size = {"full_html": False, "include_plotlyjs": False, "default_height": "100%"}
    views = "".join(
        f"<div class=view{' hidden' if number else ''}><div class=plot>"
        + figure.to_html(**size, config=CONFIG, div_id=f"{chart.key}-{number}")
        + "</div></div>"
        for number, figure in enumerate(figures)
    )
    buttons = "".join(
        f"<button type=button aria-pressed={'false' if number else 'true'}>{html.escape(axis)}</button>"
        for number, axis in enumerate(chart.views)
    )
    switch = f"<div class=switch>{buttons}</div>" if len(chart.views) > 1 else ""
    note = f"<p class=note>{html.escape(chart.note)}</p>" if chart.note else ""
    return f"<section class=chart id={chart.key}><h2>{html.escape(chart.title)}</h2>{note}{switch}{views}</section>"


def _layout(figure: go.Figure, x_label: str, y_label: str) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        xaxis={"title": x_label, "automargin": True},
        yaxis={"title": html.escape(y_label), "automargin": True},
        hovermode="x unified",
    )
    return figure


def _lines(chart: Chart, view: str, colours: dict[str, str]) -> go.Figure:
    figure, lines = go.Figure(), chart.views[view]
    for line in lines:
        colour = colours[line.name]
        for x, low, high in _bands(line):
            figure.add_scatter(
                x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=colour, opacity=0.15,
                line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=line.name,
            )  # fmt: skip
        mode = "lines+markers" if _has_markers(line) else "lines"
        figure.add_scatter(
            x=line.x, y=[y if math.isfinite(y) else None for y in line.y], name=html.escape(line.name), mode=mode,
            line={"color": colour}, legendgroup=line.name,
        )  # fmt: skip
    _layout(figure, chart.x_label or view, chart.y_label)
    xs, ys = _extent(lines)
    figure.update_xaxes(range=axis_range(xs))
    figure.update_yaxes(range=axis_range(ys))
    if _counts_steps(chart, view):
        # Plotly would label half steps on short axes.
        figure.update_xaxes(
            tickformat=",d",
            dtick=1 if max(xs) - min(xs) <= 12 else None,
            range=(xs[0] - 0.5, xs[0] + 0.5) if max(xs) == min(xs) else None,
        )
    return figure


def _counts_steps(chart: Chart, view: str) -> bool:
    return (chart.x_label or view) in ("step", "steps")


def _has_markers(line: Line) -> bool:
    """Whether points are drawn: where there are few, and where one may stand alone between gaps."""
    return len(line.x) <= 30 or not all(map(math.isfinite, line.y))


def _extent(lines: list[Line]) -> tuple[list[float], list[float]]:
    """All places on the axes that lines and bands touch."""
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for low_high in zip(*_band(line), strict=True) for y in low_high]
    return xs, ys


def _bars(chart: Chart) -> go.Figure:
    figure = go.Figure()
    parts = list(dict.fromkeys(part for values in chart.bars.values() for part in values))
    for number, part in enumerate(parts):
        figure.add_bar(
            x=[html.escape(label) for label in chart.bars],
            y=[values.get(part, 0.0) for values in chart.bars.values()],
            name=part, marker_color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    figure.update_layout(barmode="stack")
    return _layout(figure, "", chart.y_label)


def _band(line: Line) -> tuple[list[float], list[float]]:
    low = [y - spread for y, spread in zip(line.y, line.spread, strict=True)]
    return low, [y + spread for y, spread in zip(line.y, line.spread, strict=True)]


def _bands(line: Line) -> Iterator[tuple[list[float], list[float], list[float]]]:
    """Yield x, low and high of every stretch between gaps; nothing for a single seed."""
    if not any(line.spread):
        return
    stretch: list[tuple[float, float, float]] = []
    for point in [*zip(line.x, *_band(line), strict=True), (math.nan,) * 3]:
        if math.isfinite(point[1]):
            stretch.append(point)
        elif stretch:
            x, low, high = map(list, zip(*stretch, strict=True))
            yield x, low, high
            stretch = []


def _legend(name: str) -> str:
    """A name for a legend of matplotlib's, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _draw(chart: Chart, colours: dict[str, str], out: Path) -> list[Path]:
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    paths = []
    for number, view in enumerate(chart.views or [""]):
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        if chart.bars:
            bottom = dict.fromkeys(chart.bars, 0.0)
            for part_number, part in enumerate(dict.fromkeys(p for values in chart.bars.values() for p in values)):
                heights = [values.get(part, 0.0) for values in chart.bars.values()]
                colour = COLOURS[part_number % len(COLOURS)]
                axes.bar(list(chart.bars), heights, bottom=list(bottom.values()), label=part, color=colour)
                bottom = {run: bottom[run] + height for run, height in zip(chart.bars, heights, strict=True)}
        else:
            for line in chart.views[view]:
                colour = colours[line.name]
                axes.plot(
                    line.x, line.y, marker="o" if _has_markers(line) else None, label=_legend(line.name), color=colour
                )
                for x, low, high in _bands(line):
                    axes.fill_between(x, low, high, color=colour, alpha=0.15)
            xs, ys = _extent(chart.views[view])
            axes.set_ylim(axis_range(ys))
            if _counts_steps(chart, view):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            else:
                axes.set_xlim(axis_range(xs))
        title = f"{chart.title}: {view}" if len(chart.views) > 1 and chart.x_label else chart.title
        axes.set(title=title, xlabel=chart.x_label or view, ylabel=chart.y_label)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
        path = out.with_name(f"{out.stem}-{chart.key}{f'-{number}' if number else ''}.png")
        figure.savefig(path, dpi=130)
        pyplot.close(figure)
        paths.append(path)
    return paths
