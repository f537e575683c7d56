"""The gallery in a real browser: what can be pressed works, nothing leaves the page, and narrow screens suffice."""

import json
import shutil
from io import BytesIO

import pytest
from matplotlib.figure import Figure as Plot
from PIL import Image

from frugal_shared.report import Claim, Figure, Report, join_reports

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is absent; install it with: pip install playwright"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is absent; install it with: apt-get install chromium"
)

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
COMMAND = "package-one demo --samples 400 --seed 0 --an-option-with-a-long-name a/path/that/is/long"
RED, BLUE = (255, 0, 0), (0, 0, 255)
ROWS = [
    {"name": "b", "number": 10.0, "words": "two"},
    {"name": "a", "number": None, "words": "a sentence that is as long as what a paper claims of itself"},
    {"name": "e", "number": 9.0, "words": "three"},
    {"name": "c", "number": -1.5, "words": None},
    {"name": "d", "number": float("inf"), "words": "one"},
]
WIDE = {f"column {number} of a table": 1000.0 * number for number in range(12)}


def report(package):
    plot = Plot(figsize=(8, 3))
    plot.subplots().plot([1, 3, 2])
    made = Report(f"The title of {package}", HOSTILE)
    made.figures([Figure(plot, HOSTILE, "a line"), Figure(Image.new("RGB", (9, 6)), "tiny", pixelated=True)])
    made.slider(Figure(Image.new("RGB", (600, 90), RED), "red"), Figure(Image.new("RGB", (600, 90), BLUE), "blue"))
    made.table(ROWS, "rows to sort")
    made.table([WIDE], "a wide table")
    made.command(COMMAND)
    made.claims(
        f"The paper of {package}", [Claim("it is fast", "it is not: 0.97×", "one core"), Claim("more", "not here")]
    )
    made.section("More")
    made.text("only in the whole report")
    return made


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    for package in ("package-one", "package-two"):
        run = folder / package
        run.mkdir()
        (run / "manifest.json").write_text(json.dumps({"package": package}))
        (run / "results.json").write_text("{}")
        report(package).write(run)
    return join_reports(folder, [folder / "package-one", folder / "package-two"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser with a profile of its own, empty like a stranger's."""
    with sync_api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=FLAGS)
        yield context
        context.close()


@pytest.fixture
def page(browser, gallery):
    """The gallery, freshly opened; afterwards it must not have asked for anything, nor complained."""
    opened, requests, complaints = browser.new_page(), [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(gallery.as_uri())
    yield opened
    opened.close()
    assert gallery.as_uri() in requests
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert complaints == []


def column(page, number=0):
    """Return a column of the first table as it stands now."""
    return page.locator("table").first.locator(f"tbody tr > :nth-child({number + 1})").all_inner_texts()


def heading(page, name):
    return page.locator("table").first.get_by_role("columnheader", name=name)


def test_a_press_on_a_heading_sorts_and_the_next_one_turns_the_order(page):
    number = heading(page, "number")
    assert number.get_attribute("aria-sort") is None
    number.get_by_role("button").click()
    assert number.get_attribute("aria-sort") == "ascending"
    assert column(page) == ["c", "e", "b", "d", "a"]  # −1.5 < 9 < 10 < ∞, then the gap
    number.get_by_role("button").click()
    assert number.get_attribute("aria-sort") == "descending"
    assert column(page) == ["d", "b", "e", "c", "a"]  # the gap is last again


def test_headings_can_be_pressed_by_keyboard_and_one_column_sorts_at_a_time(page):
    heading(page, "number").get_by_role("button").click()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert [heading(page, name).get_attribute("aria-sort") for name in ("number", "words")] == [None, "ascending"]
    assert column(page, 2)[1:] == ["one", "three", "two", "–"]


def test_only_the_table_pressed_is_sorted(page):
    before = page.locator("#package-two table").first.locator("tbody th").all_inner_texts()
    heading(page, "name").get_by_role("button").click()
    assert column(page) == list("abcde")
    assert page.locator("#package-two table").first.locator("tbody th").all_inner_texts() == before


def colours(page):
    """Return the colours of the slider's pictures at a tenth, 4 tenths, 6 tenths and 9 tenths of the width."""
    shot = Image.open(BytesIO(page.locator(".slider").first.screenshot())).convert("RGB")
    return [shot.getpixel((round(shot.width * at), round(shot.height * 0.8))) for at in (0.1, 0.4, 0.6, 0.9)]


def test_the_slider_shows_one_picture_on_each_side_of_its_divider(page):
    assert colours(page) == [RED, RED, BLUE, BLUE]
    box = page.locator(".slider").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert colours(page) == [RED, BLUE, BLUE, BLUE]


def test_the_slider_moves_by_keyboard(page):
    page.get_by_role("slider").first.focus()
    page.keyboard.press("Home")
    assert colours(page) == [BLUE] * 4
    page.keyboard.press("End")
    assert colours(page) == [RED] * 4
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert page.get_by_role("slider").first.input_value() == "70"
    assert colours(page) == [RED, RED, RED, BLUE]


def press_copy(page):
    """Press the first button to copy; return it with the word that it answers, which stays for once."""
    page.evaluate("() => { window.setTimeout = () => 0 }")
    button = page.locator(".command button").first
    button.click()
    return button


def test_a_command_is_copied(page, browser):
    sync_api.expect(press_copy(page)).to_have_text("Copied")
    browser.grant_permissions(["clipboard-read", "clipboard-write"])  # only to look at it
    assert page.evaluate("navigator.clipboard.readText()") == COMMAND


def test_a_command_is_selected_where_the_clipboard_is_out_of_reach(page):
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject() }")
    sync_api.expect(press_copy(page)).to_have_text("Selected")
    assert page.evaluate("getSelection().toString()") == COMMAND


def test_words_of_a_report_are_no_program(page):
    assert page.get_by_text(HOSTILE).count() == 4
    assert page.title() == "Frugal Vision"


def test_the_policy_stops_a_program_that_got_in(browser, gallery, tmp_path):
    forged = tmp_path / "forged.html"
    forged.write_text(gallery.read_text().replace("rows to sort", HOSTILE))
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(forged.as_uri())
    assert page.title() == "Frugal Vision"
    assert len([text for text in complaints if "Content Security Policy" in text]) >= 2  # the script and the image
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = """[...document.querySelectorAll("h1, h2, p, a, img, .command, .slider, .claims td, figcaption")]
        .filter((element) => element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML)"""
    assert page.evaluate(outside) == []


def test_claims_stand_together_at_the_end(page):
    page.get_by_role("navigation").get_by_text("claims").click()
    assert page.url.endswith("#claims")
    assert page.locator(".claims").count() == 1
    assert page.locator(".claims [scope=rowgroup]").all_inner_texts() == [
        "The paper of package-one",
        "The paper of package-two",
    ]


def test_the_whole_report_is_one_press_away(page):
    page.get_by_role("link", name="The whole report of package-two").click()
    assert page.get_by_role("heading", level=1).inner_text() == "The title of package-two"
    assert page.get_by_text("only in the whole report").is_visible()
    assert page.locator(".claims").count() == 1
