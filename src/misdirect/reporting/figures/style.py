"""How a picture looks, and a matplotlib figure as SVG text inside an HTML page, in the page's own colours and font.

The figure is drawn in sentinel colours (`INLINE`), which become CSS variables here: one drawing serves light and dark.
Ids carry a prefix so that several drawings on one page do not meet. Style attributes become attributes of their own
(`fill="..."`), so that the page's policy can forbid every style but its own sheet.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

# name -> colour on paper; the page has a variable of each name, with values for light and dark
PAPER: Mapping[str, str] = {
    "page": "#ffffff",
    "ink": "#1c1e21",
    "muted": "#6a7079",
    "rule": "#d9dce1",
    "forget": "#c2410c",
    "retain": "#1d5fa8",
    "other": "#4a5568",
    "series0": "#c2410c",
    "series1": "#7c3aad",
    "series2": "#0f766e",
    "series3": "#a16207",
}
INLINE: Mapping[str, str] = {name: f"#0b0d{index:02x}" for index, name in enumerate(PAPER)}
STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "misdirect",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "savefig.transparent": True,
}


class Picture(NamedTuple):
    """A drawing still to be made, and what it shows in words."""

    draw: Callable[[Any, Any], Any]
    data: Any
    title: str
    description: str


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib with our settings alone, whatever the user's are. A letter without a glyph is no reason to warn."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def inline(figure: Any, prefix: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element without namespaces, which is what HTML wants."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ET.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if local(child.tag) in ("metadata", "style"):  # its style sheet would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        rename(element, prefix)
    view = root.get("viewBox") or ""
    root.attrib.clear()
    names = {"aria-labelledby": f"{prefix}-title {prefix}-desc", "stroke-linejoin": "round"}
    root.attrib.update({"viewBox": view, "role": "img", "class": "figure", **names})
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(tag, {"id": f"{prefix}-{tag}"})
        element.text = text
        root.insert(index, element)
    return ET.tostring(root, encoding="unicode")


def local(name: str) -> str:
    return name.rpartition("}")[2]


def rename(element: ET.Element, prefix: str) -> None:
    """Takes namespaces off, prefixes ids and what refers to them, and puts variables for sentinel colours."""
    element.tag = local(element.tag)
    attributes = {local(name): value for name, value in element.attrib.items()}
    for name, value in attributes.items():
        if name == "id":
            value = f"{prefix}-{value}"
        elif name == "href":
            value = re.sub(r"^#", f"#{prefix}-", value)
        else:
            value = themed(value.replace("url(#", f"url(#{prefix}-"))
        attributes[name] = value
    declarations = [part.split(":", 1) for part in attributes.pop("style", "").split(";") if ":" in part]
    attributes |= {name.strip(): value.strip() for name, value in declarations if name.strip() != "font-family"}
    element.attrib.clear()
    element.attrib.update(attributes)


def themed(value: str) -> str:
    for name, sentinel in INLINE.items():
        value = value.replace(sentinel, f"var(--{name}, {PAPER[name]})")
    return value
