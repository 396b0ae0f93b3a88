"""SVG that can be inlined into a page with others."""

from __future__ import annotations

import hashlib
import re
from xml.sax.saxutils import quoteattr


def inlined(svg: str, title: str) -> str:
    """Turn matplotlib's SVG file into an element for HTML that is still a valid file.

    Args:
        svg: The SVG that matplotlib wrote.
        title: Description of the picture for screen readers.
    """
    svg = svg[svg.index("<svg") :]  # without the prolog, which contains a URL
    # Its style sheet would apply to the whole page.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    style = "max-width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt"
    svg = svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(title)} style="{style}"', 1)
    # matplotlib uses the same ids in every picture.
    prefix = f"g{hashlib.sha256(svg.encode()).hexdigest()[:10]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", svg)
