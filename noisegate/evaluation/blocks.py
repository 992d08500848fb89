"""What the sections of a report are made of: colours, plots, menus.

Authors
 * The noisegate developers, 2026
"""

import html

from noisegate.evaluation.methods import METHODS

# Seen on white and on dark paper
COLOURS = dict(
    zip(
        METHODS,
        (
            *("#777", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8d6bbf"),
            *("#e69f00", "#56b4e9"),
        ),
        strict=True,
    )
)
ABOVE = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


def plot(name, traces, frames=(), **layout):
    """Returns a block with a figure.

    Arguments
    ---------
    name : str
        Its name in the page.
    traces : list of dict
        Traces of plotly.
    frames : list of dict
        Frames of an animation.
    **layout : dict
        Passed to ``update_layout`` of the figure.

    Returns
    -------
    tuple
        ("plot", name, plotly.graph_objects.Figure)
    """
    import plotly.graph_objects as go

    figure = go.Figure(data=traces, frames=frames)
    figure.update_layout(template="plotly_white", font_size=14, height=520)
    figure.update_layout(margin={"t": 90, "r": 20, "b": 60}, **layout)
    return "plot", name, figure


def menu(labels, names):
    """Returns a drop-down that shows the traces whose names hold its label.

    Arguments
    ---------
    labels : list of str
        What can be chosen.
    names : list of list of str
        For each trace the labels with which it is shown.

    Returns
    -------
    dict
        Of plotly's ``updatemenus``.
    """
    buttons = [
        {
            "label": html.escape(label),
            "method": "restyle",
            "args": [{"visible": [label in of for of in names]}],
        }
        for label in labels
    ]
    return {"buttons": buttons, "showactive": True, **ABOVE}
