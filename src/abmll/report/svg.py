"""A matplotlib figure as SVG inside a page: colours are the page's CSS variables, so it follows light and dark."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

from abmll.report.reliability import Colours

N_METHODS = 10  # colours of methods; more methods begin again with another line style
# Matplotlib wants hexadecimal colours, so each variable has one that nothing else uses, replaced in the text.
_VARIABLES = {
    "#0b0a01": "--ink",
    "#0b0a02": "--muted",
    "#0b0a03": "--bar",
    "#0b0a04": "--gap",
    "#0b0a05": "--grid",
    "#0b0a06": "--paper",
} | {f"#0b0b{i:02x}": f"--m{i}" for i in range(N_METHODS)}
PAGE = Colours(*list(_VARIABLES)[:6])
_STYLE = {
    "svg.fonttype": "none",  # the page's font, and text that can be searched
    "svg.hashsalt": "abmll",
    "font.size": 8.5,
    "text.parse_math": False,
    "axes.edgecolor": PAGE.muted,
    "axes.labelcolor": PAGE.ink,
    "text.color": PAGE.ink,
    "xtick.color": PAGE.muted,
    "ytick.color": PAGE.muted,
    "xtick.labelcolor": PAGE.ink,
    "ytick.labelcolor": PAGE.ink,
    "grid.color": PAGE.grid,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "figure.constrained_layout.use": True,
}


def method_colour(index: int) -> str:
    """The colour of the page's method number `index`."""
    return f"#0b0b{index % N_METHODS:02x}"


@contextmanager
def drawing() -> Iterator[Any]:
    """Pyplot without a display, in the page's style; all figures are closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        before = set(plt.get_fignums())
        try:
            yield plt
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)


def inline_svg(figure: Any, name: str, label: str) -> str:
    """The figure as an `<svg>` element that a page can hold several of.

    Args:
        figure: drawn within `drawing`, in colours of `PAGE` and `method_colour`.
        name: put before every id, so that those of two figures differ: letters, digits and dashes.
        label: what the picture shows, for those who do not see it; any text.

    Returns:
        Markup without declaration, namespaces, metadata or style sheet: it refers to nothing outside itself.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    size = re.search(r'viewBox="([^"]+)"', text)
    assert size is not None, "matplotlib wrote an SVG without a viewBox"
    body = text[text.index(">", size.end()) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r'\s*\bid="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    body = re.sub(r"font: (?:\w+ )*([\d.]+px) [^;\"]+", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]+;? ?", "", body)
    body = re.sub(r"#0b0[ab][0-9a-f]{2}", lambda m: f"var({_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], body)
    title = html.escape(label)
    return (
        f'<svg class="chart" viewBox="{size[1]}" role="img" aria-label="{title}">\n'
        + re.sub(r"\n\s*\n", "\n", body)
        + "</svg>"
    )
