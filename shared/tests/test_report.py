import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Plot
from PIL import Image

from frugal_shared.errors import RunError, UsageError
from frugal_shared.report import Claim, Figure, Report, grid, join_reports, main

HOSTILE = """</script></style>"'><evil onload=x>&amp;{{ 7*7 }}"""


class Page(HTMLParser):
    """A page as a browser would take it apart."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def picture(seed=0, size=(8, 6)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def plot(title="loss"):
    figure = Plot(figsize=(3, 2))
    figure.subplots().plot([1, 2, 3], label=title)
    return figure


def report(words="a word"):
    made = Report(words, words)
    made.text(words)
    made.note(words)
    made.figures(
        [Figure(picture(), words, words), Figure(plot(words), words), Figure(picture(), words, pixelated=True)]
    )
    made.slider(Figure(picture(1), words, words), Figure(picture(2), words), words)
    made.table([{words: words, "accuracy": 0.5}], words)
    made.command(words)
    made.claims(words, [Claim(words, words, words)])
    made.section(words)
    return made


def run_folder(path, package, words="a word", results=None):
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"package": package}))
    (path / "results.json").write_text(json.dumps(results or {"accuracy": 0.5}))
    report(words).write(path)
    return path


def cells(rows):
    """Return the (text, attributes) of every body cell, row by row, and the attributes of the headings."""
    made = Report("t")
    made.table(rows)
    body = made.html().partition("<tbody>")[2].partition("</tbody>")[0]
    found = re.findall(r"<(td|th)([^>]*)>([^<]*)</\1>", body)
    return [(text, attributes) for _, attributes, text in found], Page(made.html())


def decoded(source):
    kind, _, data = source.partition(";base64,")
    return kind, base64.b64decode(data, validate=True)


@pytest.fixture
def pages(tmp_path):
    """One report and one gallery, with hostile words wherever words can stand."""
    runs = [run_folder(tmp_path / HOSTILE.replace("/", "") / name, name + HOSTILE, HOSTILE) for name in ("one", "two")]
    return [report(HOSTILE).html(), join_reports(tmp_path / "out", runs, HOSTILE, HOSTILE).read_text()]


def test_hostile_words_stay_words(pages):
    for html in pages:
        page = Page(html)
        assert len(page.all("script")) == len(page.all("style")) == 1
        assert not page.all("evil")
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert page.words.count(HOSTILE) >= 10  # headings, paragraphs, captions, cells, command
        assert all(attributes["alt"] == HOSTILE for attributes in page.all("img"))
        assert HOSTILE in [attributes.get("aria-label") for attributes in page.all("div")]


def test_page_asks_for_nothing(pages):
    for html in pages:
        page = Page(html)
        links = [attributes[key] for _, attributes in page.elements for key in ("src", "href") if key in attributes]
        assert len(links) > 5
        assert not [link for link in links if re.match(r"\s*([a-z]+:)?//|\s*(?!data:)[a-z]+:", link, re.IGNORECASE)]
        style = html.partition("<style>")[2].partition("</style>")[0]
        assert "url(" not in style and "@import" not in style
        assert not re.search(r"https?://", html)


def test_what_stands_between_backticks_is_code_and_still_no_program():
    made = Report("t")
    made.text("`pytest -k <b>` and `x` but not a ` alone")
    made.claims("s", [Claim("`a`", "`b`", "`c`")])
    assert "<p><code>pytest -k &lt;b&gt;</code> and <code>x</code> but not a ` alone</p>" in made.html()
    assert len(Page(made.html()).all("code")) == 5


def test_policy_forbids_requests_and_admits_the_script(pages):
    for html in pages:
        (policy,) = [meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta]
        script = html.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_pictures_are_inlined_unchanged():
    png = BytesIO()
    picture(3).save(png, "PNG")
    made = Report("t")
    made.figures([Figure(picture(0), "a"), Figure(png.getvalue(), "b"), Figure(plot(), "c")])
    first, second, third = (decoded(image["src"]) for image in Page(made.html()).all("img"))
    assert np.array_equal(np.asarray(Image.open(BytesIO(first[1]))), np.asarray(picture(0)))
    assert second == ("data:image/png", png.getvalue())
    assert third[0] == "data:image/svg+xml" and ElementTree.fromstring(third[1]).tag.endswith("svg")


def test_every_picture_has_size_and_alternative_text():
    images = Page(report().html()).all("img")
    assert len(images) == 5
    assert all(image["alt"] and int(image["width"]) > 0 and int(image["height"]) > 0 for image in images)
    assert [image["class"] for image in images] == ["photo", "plot", "pixelated", "photo", "photo"]
    assert (images[2]["width"], images[2]["height"]) == ("480", "360")  # 8 × 6, enlarged by a whole factor


@pytest.mark.parametrize("image", [b"GIF89a", b"", "plot.png", np.zeros((4, 4, 3))])
def test_what_is_no_picture_is_refused_in_one_line(image):
    with pytest.raises(UsageError, match=r"^image=.*allowed: [^\n]*$"):
        Report("t").figures([Figure(image, "a")])


def test_slider_is_a_labelled_range_over_pictures_of_one_size():
    (control,) = Page(report("full model").html()).all("input")
    assert control["type"] == "range" and "full model" in control["aria-label"]
    with pytest.raises(UsageError, match="one size"):
        Report("t").slider(Figure(picture(), "a"), Figure(picture(size=(9, 6)), "b"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.9123456, "0.9123"), (0.9, "0.9000"), (12.3456, "12.35"), (1234.56, "1,235"), (-0.5, "−0.5000"),
        (0.0, "0.000"), (3.1e-5, "3.100e−05"), (2.5e12, "2.500e+12"), (7, "7"), (1797, "1,797"), (float("-inf"), "−∞"),
        (True, "yes"), (False, "no"), (None, "–"), (float("nan"), "–"), (np.float32("nan"), "–"),
        (np.float32(0.25), "0.2500"), (np.int64(3), "3"), (torch.tensor(0.25), "0.2500"), (torch.tensor(3), "3"),
        ("7", "7"),
    ],
)  # fmt: skip
def test_values_are_shown_sensibly(value, shown):
    assert cells([{"name": "a", "value": value}])[0][1][0] == shown


def test_columns_stand_in_order_of_appearance_with_gaps_marked():
    found, page = cells([{"name": "a", "x": 1 / 3}, {"name": "b", "y": 2, "x": float("nan")}])
    assert [text for text, _ in found] == ["a", "0.3333", "–", "b", "–", "2"]
    assert ["data-missing" in attributes for _, attributes in found] == [False, False, True, False, True, False]
    assert f'data-value="{1 / 3!r}"' in found[1][1]
    assert page.words.index("name") < page.words.index("x") < page.words.index("y")


def test_every_heading_can_be_pressed_and_only_numbers_sort_as_numbers():
    _, page = cells(
        [{"name": "7", "share": 0.5, "mixed": 1, "exact": True}, {"name": "8", "share": None, "mixed": "x"}]
    )
    headings = [attributes for attributes in page.all("th") if attributes["scope"] == "col"]
    assert [heading.get("class") for heading in headings] == [None, "number", None, None]
    assert len(page.all("button")) == 4


def test_infinity_sorts_in_the_browser():
    assert 'data-value="-Infinity"' in cells([{"a": "x", "b": -float("inf")}])[0][1][1]


def test_same_input_gives_the_same_bytes(tmp_path):
    first, second = (run_folder(tmp_path / name / "run", "delta-dit") for name in ("a", "b"))
    for name in ("report.html", "report.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    pages = [join_reports(run.parent / "out", [run]).read_bytes() for run in (first, second)]
    assert pages[0] == pages[1]


def test_report_reads_back_as_it_was_written(tmp_path):
    path = report().write(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text() == report().html() == Report.read(tmp_path).html()


def test_gallery_joins_the_leads_and_results(tmp_path, capsys):
    runs = [tmp_path / "run 1#?", tmp_path / "deep" / "run2"]
    for run, package in zip(runs, ("delta-dit", "clipsam"), strict=True):
        run_folder(run, package, words=f"words of {package}", results={"speedup": len(package)})
        made = Report.read(run)
        made.section("details")
        made.text("only in the whole report")
        made.write(run)
    assert main([str(tmp_path / "out"), *map(str, runs)]) == 0
    assert json.loads((tmp_path / "out/results.json").read_text()) == {
        "delta_dit": {"speedup": 9},
        "clipsam": {"speedup": 7},
    }
    html = (tmp_path / "out/index.html").read_text()
    page = Page(html)
    assert [article["id"] for article in page.all("article")] == ["delta-dit", "clipsam"]
    assert len(page.all("img")) == 10 and len(page.all("table")) == 3
    assert "words of clipsam" in page.words and "only in the whole report" not in html
    links = [link["href"] for link in page.all("a")]
    assert links == ["#delta-dit", "#clipsam", "#claims", "../run%201%23%3F/report.html", "../deep/run2/report.html"]
    assert capsys.readouterr().out == f"{(tmp_path / 'out/index.html').as_uri()}\n"


def test_the_address_of_the_gallery_is_one_word_whatever_the_folder_is_called(tmp_path, capsys):
    folder = tmp_path / "où ça #1"
    assert main([str(folder), str(run_folder(tmp_path / "run", "clipsam"))]) == 0
    [address] = capsys.readouterr().out.split()
    assert Path(unquote(urlsplit(address).path)) == folder / "index.html"
    assert address.startswith("file:///")


def test_claims_of_all_reports_stand_in_one_table_at_the_end_of_the_gallery(tmp_path):
    runs = [run_folder(tmp_path / name, name, words=f"words of {name}") for name in ("delta-dit", "clipsam")]
    page = Page(join_reports(tmp_path / "out", runs).read_text())
    assert len([table for table in page.all("table") if table.get("class") == "claims"]) == 1
    last = page.words[page.words.index("The paper says") :]
    assert last.count("words of delta-dit") == last.count("words of clipsam") == 4
    assert [table for table in Page(Report.read(runs[0]).html()).all("table") if table.get("class") == "claims"]


def test_missing_folder_is_one_line_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "frugal_shared.report", tmp_path / "out", tmp_path / "nowhere"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1 and str(tmp_path / "nowhere") in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "{"),
        ("manifest.json", "{}"),
        ("results.json", "[]"),
        ("report.json", '{"format": 0}'),
        ("report.json", "\x00"),
    ],
)
def test_unreadable_run_is_named(tmp_path, name, content):
    run = run_folder(tmp_path / "run", "delta-dit")
    (run / name).write_text(content)
    with pytest.raises(RunError, match=rf"{name} in '{run}'"):
        join_reports(tmp_path / "out", [run])


def test_two_runs_of_one_package_are_refused(tmp_path, capsys):
    runs = [str(run_folder(tmp_path / name, "delta-dit")) for name in ("a", "b")]
    assert main([str(tmp_path / "out"), *runs]) == 2
    assert "second run of 'delta-dit'" in capsys.readouterr().err
    assert main([str(tmp_path / "out")]) == main(["--help"]) == 2


def test_grid_tiles_row_by_row_with_transparent_gaps():
    images = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    tiled = np.asarray(grid(images, columns=3, scale=2))
    assert tiled.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 4)
    assert np.array_equal(tiled[6:10:2, 8:14:2, :3], images[4])
    assert np.array_equal(tiled[7:10:2, 9:14:2, :3], images[4])
    assert (tiled[..., 3] == 255).sum() == 5 * 4 * 6
    assert not tiled[4:6].any() and not tiled[:, 6:8].any() and not tiled[6:, 14:].any()


def test_grid_takes_floats_and_bytes_alike():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    expected = np.asarray(grid(images, columns=8))
    assert expected.shape == (4, 3 * 4 + 2 * 2, 4)
    assert np.array_equal(np.asarray(grid(images / 255, columns=8)), expected)
    assert np.array_equal(np.asarray(grid(torch.from_numpy(images / 255), columns=8)), expected)
    assert np.asarray(grid(np.full((1, 1, 1, 3), 1.5), columns=1))[0, 0].tolist() == [255] * 4


@pytest.mark.parametrize(
    ("shape", "columns", "scale"),
    [((0, 2, 2, 3), 1, 1), ((2, 2, 3), 1, 1), ((1, 3, 2, 2), 1, 1), ((1, 2, 2, 3), 0, 1), ((1, 2, 2, 3), 1, 0)],
)
def test_grid_refuses_what_it_cannot_tile(shape, columns, scale):
    with pytest.raises(UsageError, match="allowed"):
        grid(np.zeros(shape), columns, scale)
