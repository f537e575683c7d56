"""The report of a run: one HTML file with pictures, tables and the command that makes it again.

The page carries its pictures, style and script in itself, and its content security policy forbids every request. Beside
``report.html`` lies ``report.json``, the same content as plain data, from which reports of several packages, written by
several environments, are joined into one page::

    python -m frugal_shared.report OUT_DIR RUN_DIR [RUN_DIR ...]
"""

import base64
import hashlib
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup, escape
from matplotlib.figure import Figure as Plot
from PIL import Image

from frugal_shared.errors import RunError, UsageError
from frugal_shared.reading import read_json
from frugal_shared.writing import write_bytes, write_json

FORMAT = 1
SUBTITLE = "Measured in one run on this machine: pictures first, then the figures, and the command that repeats them."
_SMALLEST_WIDTH = 480  # screen pixels that a pixelated picture is enlarged to


@dataclass(frozen=True)
class Figure:
    """One picture of a report, with its words."""

    image: Image.Image | Plot | bytes
    """A PIL image, a matplotlib figure (shown as SVG on white, also in the dark), or the bytes of a PNG file."""
    caption: str
    """What the reader should see in it."""
    alt: str = ""
    """What it shows, for those who cannot see it; empty: the caption says it."""
    pixelated: bool = False
    """Enlarge a tiny picture by a whole factor, with sharp pixels."""


@dataclass(frozen=True)
class Claim:
    """What a paper says, beside what this run measured."""

    paper: str
    """The claim, in words; a number in it is the paper's."""
    measured: str
    """What came out here, its numbers put in by the run; or that it was not measured, and the command that does."""
    scale: str = ""
    """What was measured on: model, data, samples, seeds; empty where nothing was."""


class Report:
    """A report under construction: blocks are shown in the order in which they were added.

    What stands before the first :meth:`section` is the lead, and all that a gallery shows of the report. So the best
    pictures come first, then the table that sums up, then the command and the claims; details follow in sections.

    Args:
        title: the heading of the page.
        subtitle: one line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.blocks: list[dict[str, Any]] = []

    def section(self, heading: str) -> None:
        """Start a section."""
        self._add("section", heading=heading)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._add("text", text=text)

    def note(self, text: str) -> None:
        """Add a paragraph of fine print: what was measured on what, and what it does not show."""
        self._add("note", text=text)

    def command(self, command: str) -> None:
        """Add a command to copy, such as the one that makes this report again."""
        self._add("command", command=command)

    def figures(self, figures: Iterable[Figure]) -> None:
        """Add a row of pictures; it wraps where the screen is narrow.

        Raises:
            UsageError: an image is of no known kind.
        """
        self._add("figures", figures=[_picture(figure) for figure in figures])

    def slider(self, before: Figure, after: Figure, caption: str = "") -> None:
        """Add two pictures of one size upon each other with a divider to drag; their captions name the two sides.

        Raises:
            UsageError: an image is of no known kind, or the two differ in size.
        """
        left, right = _picture(before), _picture(after)
        sizes = [(picture["width"], picture["height"]) for picture in (left, right)]
        if sizes[0] != sizes[1]:
            raise UsageError(f"after={sizes[1]} pixels cannot lie upon before={sizes[0]}; allowed: one size for both")
        self._add("slider", before=left, after=right, caption=caption)

    def table(self, rows: Sequence[dict[str, Any]], caption: str = "") -> None:
        """Add a table that sorts by a click on a column's heading.

        Numbers are shown with four digits (all of them on hovering); None, NaN and absent values as "–", sorted last.

        Args:
            rows: column → value; columns stand in the order in which they first appear.
            caption: what the table shows.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        values = [[_plain(row.get(name)) for name in names] for row in rows]
        columns = [{"name": name, "numeric": _is_numeric(row[i] for row in values)} for i, name in enumerate(names)]
        self._add("table", columns=columns, rows=values, caption=caption)

    def claims(self, source: str, claims: Iterable[Claim]) -> None:
        """Add a table of what a paper says and what was measured; a gallery joins those of all reports at its end.

        Args:
            source: the paper, such as "Δ-DiT, arXiv 2406.01125".
            claims: in the order in which they are shown.
        """
        self._add("claims", source=source, rows=[asdict(claim) for claim in claims])

    def html(self) -> str:
        """Return the page."""
        return _render("report.html.j2", report=self)

    def write(self, folder: Path) -> Path:
        """Write ``report.html`` and ``report.json`` into the run's folder, each atomically; return the page's path."""
        content = {"format": FORMAT, "title": self.title, "subtitle": self.subtitle, "blocks": self.blocks}
        write_json(folder / "report.json", content)
        write_bytes(folder / "report.html", self.html().encode())
        return folder / "report.html"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the report that :meth:`write` left in ``folder``.

        Raises:
            RunError: it is missing, unreadable, or of another format.
        """
        content = read_json(folder / "report.json")
        if content.get("format") != FORMAT:
            raise RunError(f"report.json in {str(folder)!r} has format {content.get('format')!r}; allowed: {FORMAT}")
        try:
            report = cls(content["title"], content["subtitle"])
            report.blocks = content["blocks"]
            if [type(value) for value in (report.title, report.subtitle, report.blocks)] != [str, str, list]:
                raise TypeError("title, subtitle or blocks are of another type")
            report.html()
        except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
            raise RunError(f"report.json in {str(folder)!r} holds no report: {error}") from error
        return report

    @property
    def lead(self) -> list[dict[str, Any]]:
        """The blocks before the first section."""
        kinds = [block["kind"] for block in self.blocks]
        return self.blocks[: kinds.index("section")] if "section" in kinds else self.blocks

    def _add(self, kind: str, **content: Any) -> None:
        self.blocks.append({"kind": kind, **content})


def join_reports(folder: Path, runs: Sequence[Path], title: str = "Frugal Vision", subtitle: str = SUBTITLE) -> Path:
    """Join the reports of several runs, one per package, into a gallery.

    Writes ``results.json``, package (with underscores) → results of its run, and ``index.html``, which shows the lead
    of every report, links to the whole, and ends in one table of all claims.

    Args:
        folder: where to write.
        runs: run folders with ``manifest.json``, ``results.json`` and the report.
        title: the heading of the gallery.
        subtitle: one line below it.

    Returns:
        The path of ``index.html``.

    Raises:
        RunError: a file of a run is missing or unreadable.
        UsageError: two runs are of the same package.
    """
    entries, results = [], {}
    for run in runs:
        package = read_json(run / "manifest.json").get("package")
        if not isinstance(package, str) or not package:
            raise RunError(f"manifest.json in {str(run)!r} names no package")
        name = package.replace("-", "_")
        if name in results:
            raise UsageError(f"runs={str(run)!r} is a second run of {package!r}; allowed: one run per package")
        results[name] = read_json(run / "results.json")
        link = Path(os.path.relpath(run, folder), "report.html").as_posix()
        entries.append({"package": package, "report": Report.read(run), "link": link})
    page = _render("gallery.html.j2", title=title, subtitle=subtitle, entries=entries)
    write_json(folder / "results.json", results)
    write_bytes(folder / "index.html", page.encode())
    return folder / "index.html"


def grid(images: np.ndarray, columns: int, scale: int = 1) -> Image.Image:
    """Tile images, row by row, with thin transparent gaps.

    Args:
        images: ``(N, H, W, 3)``, uint8 or float in [0, 1] (clipped).
        columns: images per row.
        scale: whole factor by which every pixel is enlarged.

    Returns:
        An RGBA picture.

    Raises:
        UsageError: ``images`` has another shape or no image, or a number is below 1.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
        raise UsageError(
            f"images={images.shape} is no stack of pictures; allowed: shape (N, H, W, 3) with N at least 1"
        )
    if columns < 1 or scale < 1:
        raise UsageError(f"columns={columns!r}, scale={scale!r} is not possible; allowed: 1 or more")
    if images.dtype != np.uint8:
        images = (images.clip(0, 1) * 255).round().astype(np.uint8)
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = tiles.shape
    columns, gap = min(columns, count), max(2, scale)
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        canvas[y : y + height, x : x + width, :3] = tile
        canvas[y : y + height, x : x + width, 3] = 255
    return Image.fromarray(canvas)


def _picture(figure: Figure) -> dict[str, Any]:
    """Return a figure as plain data: a data URI, its size on the screen, and its words."""
    data, width, height = _svg(figure.image) if isinstance(figure.image, Plot) else _png(figure.image)
    kind = "svg+xml" if isinstance(figure.image, Plot) else "png"
    zoom = math.ceil(_SMALLEST_WIDTH / width) if figure.pixelated else 1
    return {
        "source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "width": width * zoom,
        "height": height * zoom,
        "caption": figure.caption,
        "alt": figure.alt or figure.caption,
        "look": "plot" if kind == "svg+xml" else "pixelated" if figure.pixelated else "photo",
    }


def _svg(plot: Plot) -> tuple[bytes, int, int]:
    """Return a plot as SVG without date and random ids, and its size in CSS pixels (1/96 inch)."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "frugal", "svg.fonttype": "path"}):
        plot.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    width, height = plot.get_size_inches() * 96
    return buffer.getvalue(), round(width), round(height)


def _png(image: Image.Image | bytes) -> tuple[bytes, int, int]:
    if isinstance(image, bytes):
        try:
            return image, *Image.open(BytesIO(image), formats=["PNG"]).size
        except OSError as error:
            raise UsageError(f"image={image[:8]!r}… is no PNG file; allowed: the bytes of a PNG file") from error
    if not isinstance(image, Image.Image):
        kind = type(image).__name__
        raise UsageError(f"image={kind} cannot be shown; allowed: PIL image, matplotlib figure, bytes of a PNG file")
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue(), *image.size


def _plain(value: Any) -> bool | int | float | str | None:
    """Return a table's value as JSON holds it; NaN is a missing value, and a numpy or torch scalar is a number."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def _is_numeric(column: Iterable[bool | int | float | str | None]) -> bool:
    """Whether a column holds numbers and nothing else but gaps."""
    kinds = {type(value) for value in column if value is not None}
    return bool(kinds) and kinds <= {int, float}


def _shown(value: bool | int | float | str | None) -> str:
    """Return a value as the table shows it."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        number = f"{value:,}"
    else:
        number = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:#.4g}"
    return number.replace("-", "−").replace("inf", "∞")


def _prose(text: str) -> Markup:
    """Return a text as HTML, with what stands between `backticks` as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _render(template: str, **content: Any) -> str:
    loader = PackageLoader("frugal_shared")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = (loader.get_source(pages, f"page.{kind}")[0] for kind in ("css", "js"))
    # the policy names the script by its hash, so that no other script runs whatever a caption may hold
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages.globals.update(style=Markup(style), script=Markup(script), script_hash=digest)
    pages.filters.update(shown=_shown, prose=_prose)
    return pages.get_template(template).render(**content)


def main(arguments: Sequence[str]) -> int:
    """Join the runs named on the command line, and print the page's address, which a terminal opens at a click.

    Returns:
        0, 1 where a run cannot be read, or 2 for a wrong request.
    """
    if len(arguments) < 2 or any(argument.startswith("-") for argument in arguments):
        sys.stderr.write("usage: python -m frugal_shared.report OUT_DIR RUN_DIR [RUN_DIR ...]\n")
        return 2
    folder, *runs = map(Path, arguments)
    try:
        sys.stdout.write(f"{join_reports(folder, runs).resolve().as_uri()}\n")
    except (RunError, UsageError, OSError) as error:
        sys.stderr.write(f"report: error: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
