"""The HTML report in a real browser: it shows what it should, and what models wrote stays text."""

from pathlib import Path

import made_rounds as made
import pytest
from browser import Page

from pipeline.report import write_report
from pipeline.report.text import visible
from storage.objects import open_store
from storage.sqlfiles import names

OURS = set("""html head meta title style body nav main header section article footer h1 h2 h3 p a ol li div span code
dl dt dd table thead tbody tr th td details summary figure figcaption svg g path defs use clippath rect text
tspan""".split())
SHORT = 100
"""Characters of a hostile text that every place of the report shows."""


def html_of(store, run, folder, number=None):
    return Path(write_report(store, run, number, folder)["html"])


@pytest.fixture(scope="module")
def hostile_page(browser, hostile, tmp_path_factory):
    with Page(browser, html_of(hostile, "hostile", tmp_path_factory.mktemp("out"))) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        yield opened


def test_hostile_texts_open_no_dialog_load_nothing_and_leave_the_console_empty(hostile_page):
    for summary in hostile_page.page.query_selector_all(".tokens > span")[:40]:
        summary.hover()
    assert hostile_page.noise == []


def test_there_is_no_element_that_is_not_ours(hostile_page):
    tags = hostile_page.page.evaluate("[...document.querySelectorAll('*')].map(each => each.tagName.toLowerCase())")
    assert set(tags) <= OURS
    assert tags.count("h1") == tags.count("title") == tags.count("style") == 1 and tags.count("meta") == 4


def test_no_attribute_is_a_handler_and_links_stay_in_the_page(hostile_page):
    attributes = hostile_page.page.evaluate(
        "[...document.querySelectorAll('*')].flatMap(each => [...each.attributes].map(a => [a.name, a.value]))")
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("src", "srcdoc", "action")]
    assert all(value.startswith("#") for name, value in attributes if name == "href")
    assert not [value for name, value in attributes if name == "style" and "url(" in value.replace("url(#", "")]


def test_every_hostile_text_can_be_read(hostile_page, hostile_texts):
    shown = hostile_page.page.evaluate("document.querySelector('#inspector').textContent")
    answers = hostile_page.page.evaluate("document.querySelector('#answers').textContent")
    for text in hostile_texts:
        expected = visible(text[:SHORT]).replace("\n", "↵\n")
        assert expected in shown, text[:SHORT]
    assert "\\x1b[31mred" in answers and "\\u202egnp.exe" in answers and "NUL\\x00here" in answers


def test_control_and_bidi_characters_are_nowhere_in_the_file(hostile, tmp_path):
    data = html_of(hostile, "hostile", tmp_path).read_text(encoding="utf-8")
    assert not set("\x00\x07\x1b\r\u202e\u2066\u200b\u2028\u2029") & set(data)


def test_a_very_long_token_is_cut_and_the_page_is_no_wider_than_the_window(browser, hostile, tmp_path):
    path = html_of(hostile, "hostile", tmp_path)
    for width in (360, 1280):
        with Page(browser, path, viewport={"width": width, "height": 800}) as opened:
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert "x" * 3000 not in path.read_text()


def test_a_masked_token_is_grey_and_its_hover_tells_its_numbers(hostile_page):
    first = hostile_page.page.query_selector("#inspector .tokens > span")
    assert "masked" in first.get_attribute("class")
    hover = first.get_attribute("title").splitlines()
    assert hover[1] == "student −0.69 (50.0 %)"
    assert hover[3] == "teacher's first: “<script>alert(1)</script…” 50.0 %, “one” 25.0 %, “two” 12.5 %"
    assert hover[4].startswith("masked: <script>")


# --- a plain run ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_is_drawn_in_light_and_in_dark(browser, plain, tmp_path, scheme):
    with Page(browser, html_of(plain, "plain", tmp_path), color_scheme=scheme) as opened:
        sizes = opened.page.evaluate("""[...document.querySelectorAll('figure svg')].map(each => {
            const box = each.getBoundingClientRect()
            return [box.width, box.height, each.querySelectorAll('path').length,
                    each.querySelectorAll('text').length] })""")
        assert len(sizes) >= 18 and all(min(size) > 2 for size in sizes), sizes
        assert opened.noise == []
        line = "getComputedStyle(document.querySelector('#training figure svg path[style*=blue]')).stroke"
        assert opened.page.evaluate(line) == {"light": "rgb(43, 108, 176)", "dark": "rgb(107, 168, 229)"}[scheme]


def test_text_stands_out_from_its_ground_in_light_and_in_dark(browser, plain, tmp_path):
    path = html_of(plain, "plain", tmp_path, 2)
    for scheme in ("light", "dark"):
        with Page(browser, path, color_scheme=scheme) as opened:
            pairs = opened.page.evaluate("""(() => {
                const dye = (name) => { const span = document.createElement('span'); document.body.append(span)
                    span.style.color = `var(--${name})`; const found = getComputedStyle(span).color; span.remove()
                    return found.match(/[0-9.]+/g).slice(0, 3).map(Number) }
                return ['page', 'card', 'soft', 'n3', 'n2', 'n1', 'p1', 'p2'].map(ground => [dye('ink'), dye(ground)])
                    .concat([[dye('muted'), dye('page')], [dye('muted'), dye('card')], [dye('muted'), dye('soft')]])
            })()""")
        assert all(contrast(*pair) >= 4.5 for pair in pairs), (scheme, [contrast(*pair) for pair in pairs])


def contrast(left, right):
    """WCAG's ratio of relative luminances."""
    def luminance(color):
        parts = [part / 255 for part in color]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(left), luminance(right)])
    return (light + 0.05) / (dark + 0.05)


def test_contents_lead_to_every_section(browser, plain, tmp_path):
    with Page(browser, html_of(plain, "plain", tmp_path)) as opened:
        links = opened.page.evaluate("[...document.querySelectorAll('nav a')].map(each => each.hash)")
        assert links == [f"#{each}" for each in opened.page.evaluate(
            "[...document.querySelectorAll('section')].map(each => each.id)")]
        assert len(links) == 13


def test_every_figure_says_what_to_ask_and_the_answer_exists(browser, plain, tmp_path):
    with Page(browser, html_of(plain, "plain", tmp_path)) as opened:
        asked = opened.page.evaluate("[...document.querySelectorAll('.ask code')].map(each => each.textContent)")
        figures = opened.page.evaluate("[...document.querySelectorAll('figure, .scroll')].filter(each => "
                                       "!(each.querySelector('.ask') || each.parentElement.querySelector('.ask')))")
    assert figures == []
    known = {f"opd sql {name} --run plain" for name in names("reports")} | {
        f'opd sql "FROM {name}" --run plain' for name in ("rounds", "steps", "accuracy")}
    assert len(asked) > 20 and set(asked) <= known


# --- size, and the same bytes ---


def test_the_same_store_gives_the_same_bytes(plain, tmp_path):
    for number in (None, 2):
        first, second = (write_report(plain, "plain", number, tmp_path / each) for each in "ab")
        for kind in ("html", "markdown"):
            assert open(first[kind], "rb").read() == open(second[kind], "rb").read()


def test_a_run_of_thirty_rounds_and_long_rollouts_stays_below_three_megabytes(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path, "long")
    for number in range(30):
        responses = {10 * number + each: [101 + each] * 3000 for each in range(3)}
        written_rows = made.rollouts(responses, response_text=["word " * 20_000] * 3)
        made.commit_round(store, tmp_path, "long", number, [(written_rows, made.tokens(responses))],
                          step_rows=made.steps(50, step=[50 * number + i for i in range(50)]))
    page = html_of(store, "long", tmp_path / "out")
    assert 100_000 < page.stat().st_size < 3_000_000
    assert "2,100 tokens are not shown" in page.read_text()
