"""The HTML that all report pages share: one file, without external resources, printable."""

import base64
import html
import io

from matplotlib.figure import Figure

from melanoma.config import DISCLAIMER
from melanoma.evidence.plots import ACCENT, INK

DPI = 130


def page(title: str, body: str) -> str:
    """Return a complete HTML page.

    Args:
        title: plain text; it is escaped here.
        body: HTML, inserted as it is.
    """
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
 :root {{ color-scheme: light }}
 body {{
  font: 16px/1.5 system-ui, sans-serif; color: {INK};
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem
 }}
 table {{ border-collapse: collapse }}
 th, td {{
  text-align: left; padding: .35rem 1.2rem .35rem 0;
  border-bottom: 1px solid #e4e7eb; font-weight: 400
 }}
 thead th, td {{ font-weight: 600 }}
 small {{ color: #52606d; font-weight: 400 }}
 td small {{ white-space: nowrap }}
 img {{ width: min(30rem, 100%) }}
 .wide {{ overflow-x: auto }}
 .verdict {{ border-left: 5px solid {ACCENT}; padding: .4rem 1rem; background: #fdf2f8 }}
</style>
{body}
<p><b>{DISCLAIMER}</b></p></html>
"""


def html_table(head: list[str], rows: list[list[str]]) -> str:
    """Return an HTML table; cells are HTML, and the first cell of a row is its header."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join(
        f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{header}</tr></thead>{lines}</table>"


def image(description: str, png: bytes) -> str:
    """Return an HTML image with its data inline; the description is escaped here."""
    return (
        f'<img alt="{html.escape(description)}"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def to_png(figure: Figure) -> bytes:
    """Return a figure encoded as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()
