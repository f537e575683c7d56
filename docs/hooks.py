"""Show the cross-references of docstrings, such as ``:class:`~clipsam.mmr.MMRConfig```, as the name they stand for."""

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>(?:~[\w.]*\.)?([\w.]+)</code>")
LITERAL = re.compile(r"::</p>")


def on_page_content(html: str, **_: Any) -> str:
    """Replace roles by code, and the two colons in front of a literal block by one."""
    return LITERAL.sub(":</p>", ROLE.sub(r"<code>\1</code>", html))
