"""SVG that can stand in a page, beside others."""

from __future__ import annotations

import hashlib
import re
from xml.sax.saxutils import quoteattr


def inlined(svg: str, title: str) -> str:
    """Return a file of matplotlib's as an element for a page of HTML, and a file still.

    Args:
        svg: What matplotlib wrote.
        title: What the picture shows, for those who cannot see it.
    """
    svg = svg[svg.index("<svg") :]  # without the prolog, which names an address
    # Its style sheet would be the whole page's.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    style = "max-width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt"
    svg = svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(title)} style="{style}"', 1)
    # matplotlib gives the same names to the parts of every picture.
    prefix = f"g{hashlib.sha256(svg.encode()).hexdigest()[:10]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", svg)
