"""The pages of a report: one self-contained HTML page, and Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from adadiff.utils.files import write_bytes

PICTURES = "pictures"


def write_pages(
    out: Path, template: str, contents: Mapping[str, Any], drawn: Mapping[str, Figure], files: Mapping[str, str]
) -> None:
    """Write index.html, which contains everything, report.md, which links the images in `pictures/`, and other files.

    Args:
        out: An existing folder.
        template: Name of the two templates, without .html and .md.
        contents: Values by the names that the templates use.
        drawn: Figures by their names in `pictures`.
        files: Contents of other files, by name.
    """
    pictures = {name: _png(figure) for name, figure in drawn.items()}
    embedded = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in pictures.items()}
    beside = {name: f"{PICTURES}/{name}.png" for name in pictures}
    (out / PICTURES).mkdir(exist_ok=True)
    for name, data in (
        *((beside[name], data) for name, data in pictures.items()),
        *((name, text.encode()) for name, text in files.items()),
        ("report.md", _rendered(f"{template}.md", pictures=beside, **contents)),
        ("index.html", _rendered(f"{template}.html", pictures=embedded, **contents)),
    ):
        write_bytes(out / name, data)


def _rendered(template: str, **contents: Any) -> bytes:
    pages = Environment(loader=PackageLoader("adadiff.comparison", "."), autoescape=select_autoescape())
    return pages.get_template(template).render(**contents).encode()


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
