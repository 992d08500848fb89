"""A page about a sweep: curves, widths, runs.

All is read from the folder of the sweep; neither the recipe nor its data need
be there. The page is one file that loads nothing, with plots by plotly.

Authors
 * The noisegate developers, 2026
"""

import functools
import html
import importlib
import io
import os
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from noisegate.evaluation.estimates import SweepResults
from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    without_paths,
    write_atomically,
)
from noisegate.evaluation.results import SweepFolder
from noisegate.evaluation.sections import SECTIONS, conclusion
from noisegate.evaluation.table import figures, summarize
from noisegate.extras import extra

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def _to_html(title, blocks):
    """The page: all of it is in the template, and escaped there."""
    import jinja2
    import markupsafe
    from plotly.offline import get_plotlyjs

    # No button that uploads the figure
    config = {"displaylogo": False, "responsive": True}
    config |= {"showSendToCloud": False, "plotlyServerURL": ""}
    shown = []
    for kind, content, *more in blocks:
        if kind == "plot":
            content = markupsafe.Markup(
                more[0].to_html(
                    full_html=False,
                    include_plotlyjs=False,
                    auto_play=False,
                    div_id=content,
                    config=config,
                )
            )
        shown.append((kind, content, more[0] if more else None))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    plotly = markupsafe.Markup(get_plotlyjs())
    return template.render(title=title, blocks=shown, plotly=plotly) + "\n"


def _to_markdown(block):
    plain = functools.partial(html.escape, quote=False)
    kind, *parts = block
    if kind == "table":
        headings, *rows = ([*map(plain, row)] for row in (parts[0], *parts[1]))
        return markdown_table(headings, rows)
    if kind == "plot":
        return f"(plot: `report.html#{parts[0]}`)"
    if kind == "code":
        return f"```\n{parts[0]}\n```"
    return {"title": "# ", "heading": "## "}.get(kind, "") + plain(parts[0])


def _to_png(figures):
    """Plots side by side."""
    picture = Figure(figsize=(6 * len(figures), 5), layout="constrained")
    axes = picture.subplots(1, len(figures), squeeze=False)[0]
    for axis, figure in zip(axes, figures):
        for trace in figure.data:
            lines, dash = "lines" in trace.mode, trace.line.dash
            cross = trace.marker.symbol == "x"
            axis.errorbar(
                trace.x,
                trace.y,
                xerr=trace.error_x.array,
                yerr=trace.error_y.array,
                elinewidth=1,
                color=trace.marker.color or trace.line.color,
                alpha=trace.opacity,
                linestyle=("--" if dash else "-") if lines else "",
                marker=("x" if cross else "o")
                if "markers" in trace.mode
                else "",
                markersize=4,
                label="_" if trace.showlegend is False else trace.name,
            )
        kind = figure.layout.xaxis.type or "linear"
        if kind == "category":
            axis.tick_params("x", rotation=60)
            axis.set_ylim(0, 1.05)
        else:
            axis.set(xscale=kind)
        for one, layout in (
            (axis.xaxis, figure.layout.xaxis),
            (axis.yaxis, figure.layout.yaxis),
        ):
            text = html.unescape(layout.title.text or "")
            one.set_label_text(text, parse_math=False)
            if layout.tickvals is not None:
                one.set_ticks(layout.tickvals, layout.ticktext)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        if kind == "category":  # whose labels are long
            below = {"loc": "upper center"}
        axis.legend(ncols=4, fontsize="small", **below)
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=85)
    # Of few colours: a third of the bytes
    small = io.BytesIO()
    image = Image.open(file).convert("RGB").quantize(128)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def write_report(
    folder,
    metric=None,
    published=None,
    readme=None,
    columns=(),
    block=None,
):
    """Writes ``report.html`` and ``report.md`` into the folder of a sweep.

    Also ``curves.png``, of all finished cells in the folder, which are taken
    into ``cells.jsonl`` and ``trials.zip``. A sweep over several models has no
    page but a table.

    Arguments
    ---------
    folder : str
        The folder of the sweep.
    metric : str
        See :func:`noisegate.evaluation.table.summarize`; less is taken as
        better.
    published : str
        Path of a CSV with figures of other work to show beside: columns
        "model", "eer_percent" and one whose name ends in "flops"; its first
        line is the dense model there.
    readme : str
        Path of a Markdown file, in which ``curves.png`` and the tables of the
        first two sections are put between ``<!-- name -->`` and
        ``<!-- /name -->``, for the name of the folder.
    columns : list of str
        Further figures of the test for the table.
    block : str
        The name in the Markdown file, that of the folder if None.

    Returns
    -------
    pathlib.Path
        The page, or the file of the cells.

    Raises
    ------
    ValueError
        If the folder holds no sweep, no cell is finished, the CSV lacks a
        column or has no curve to go with, or the Markdown file the block.
    ImportError
        If plotly is missing.
    """
    sweep = SweepFolder(folder)
    sweep.gather()
    rows = figures(sweep.results())
    if any(row["model"] for row in rows):  # no curve of one model
        if published is not None:
            raise ValueError(
                f"{folder} has several models, so no curve to show published "
                "figures beside"
            )
        text = markdown_table(*summarize(rows, metric, columns))
        if readme is not None:
            fill_blocks(readme, **{block or sweep.folder.name: text})
        return sweep.folder / "cells.jsonl"
    with extra("report"):
        importlib.import_module("jinja2")
        importlib.import_module("plotly")
    data = SweepResults(sweep, metric, published, columns)
    plan = sweep.plan
    title = f"{plan['recipe']}, {plan['hparams']}: trade-off of a sweep"
    overrides = " ".join(map(without_paths, plan["overrides"])) or "none"
    intro = (
        "Models of several methods, trained by the same recipe for several "
        "budgets. A budget is the share of the multiply-accumulates (MACs) of "
        "the dense model, the one at full width, that a model may cost. The "
        f"figure is {data.metric} on the test set; less is better. The curve "
        "comes first, then how sure its differences are, then which layers "
        "were narrowed, and last all runs with their commands. "
        f"{len(data.results)} of {len(sweep.cells)} cells are finished. "
        f"Overrides of the recipe: {overrides}."
    )
    blocks = [("title", title), ("conclusion", conclusion(data))]
    blocks.append(("text", intro))
    tables, plots = [], []
    sections = tqdm(SECTIONS.items(), "sections", leave=False)
    for number, (heading, section) in enumerate(sections, 1):
        found = list(section(data))
        blocks += [("heading", f"{number}. {heading}"), *found]
        if number <= 2:
            tables += [_to_markdown(x) for x in found if x[0] == "table"]
        plots += [
            x[2]
            for x in found
            if x[0] == "plot" and (number <= 2 or x[1] == "seeds")
        ]
    picture = sweep.folder / "curves.png"
    write_atomically(picture, _to_png(plots))
    if readme is not None:
        place = os.path.relpath(picture, os.path.dirname(readme) or ".")
        shown = f"![Trade-off curves]({place})"
        tables = "\n\n".join([shown, *tables])
        fill_blocks(readme, **{block or sweep.folder.name: tables})
    text = [_to_markdown(block) for block in blocks]
    text.insert(3, "![Trade-off curves](curves.png)")
    text = "\n\n".join(text) + "\n"
    write_atomically(sweep.folder / "report.md", text)
    page = _to_html(title, blocks)
    write_atomically(sweep.folder / "report.html", page)
    return sweep.folder / "report.html"
