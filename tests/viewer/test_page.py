"""The page: its data, that nothing in it is markup or comes from elsewhere, and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from html.parser import HTMLParser

import pytest
from any_events import random_events
from demo_run import demo_events

from asgl.trace import OpEvent, StreamEvent, TextEvent, TokenEvent
from asgl.trace.model import Model
from asgl.viewer.page import page_data, page_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def data_of(page: str) -> dict:
    """The data that the page carries, as a browser reads it."""

    class Reader(HTMLParser):
        text = None
        inside = False

        def handle_starttag(self, tag, attributes):
            assert tag not in ("img", "iframe", "object", "embed")
            for name, value in attributes:
                if name in ("src", "href"):
                    assert value in ("data:,", "#tree")
            self.inside = dict(attributes).get("id") == "data"

        def handle_data(self, data):
            if self.inside:
                self.text = (self.text or "") + data

        def handle_endtag(self, tag):
            self.inside = False

    reader = Reader()
    reader.feed(page)
    return json.loads(reader.text or "")


def test_the_data_of_a_run():
    (run,) = page_data(Model(demo_events(closed=True)))["runs"]
    titles = [stream["title"] for stream in run["streams"]]
    assert titles[:4] == ["ideas[0]", "branch 0", "branch 1", "ideas[1]"]
    assert [stream["up"] for stream in run["streams"][:4]] == [-1, 0, 0, -1]
    first = run["streams"][0]["spans"]
    assert first[0] == ["Think of rain.", 2]
    assert first[1] == [" Water", 3, -0.25, [[" Water", -0.25], [" other", -1.5]]]
    assert first[-1][1] == 7
    assert len(run["steps"]) == 5
    assert len(run["requests"]) == 9
    assert run["streams"][4]["ops"][0]["tools"][0][:3] == ["look", '{"city": "Lyon"}', "failed"]


@pytest.mark.parametrize("seed", range(40))
def test_any_events_make_a_page(seed):
    model = Model(random_events(seed, 100))
    page = page_of(model, "a <b> & c")
    read = data_of(page)
    assert len(read["runs"]) == len(model.runs)
    assert "<title>a &lt;b&gt; &amp; c</title>" in page


NASTY = "</script><script>alert(1)</script><!-- \u2028 ]]> \ud800 <!--DATA--> $& \\"


def test_what_a_model_says_is_text_and_no_markup():
    events = [
        StreamEvent("opened", 0, None, NASTY),
        TextEvent("prompt", 0, 0, 1, NASTY),
        OpEvent("submitted", 0, 0, "gen", NASTY),
        OpEvent("failed", 0, 0, "gen", NASTY, None, "", NASTY),
    ]
    page = page_of(Model(events), NASTY)
    assert page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    (run,) = data_of(page)["runs"]
    assert run["streams"][0]["title"] == NASTY
    page.encode("utf-8")


def test_nothing_is_loaded_from_elsewhere():
    page = page_of(Model(demo_events()), "demo")
    assert not re.findall(r"(?:https?:)?//[a-z]+\.", page)
    assert "default-src 'none'" in page
    for word in ("fetch(", "XMLHttpRequest", "@import", "url(", "innerHTML", "eval("):
        assert word not in page


def test_a_probability_of_nothing_is_no_number_in_json():
    events = [
        OpEvent("requested", 0, 0, "gen", None, 1),
        TokenEvent(1, 2, "a", "sampled", float("-inf")),
    ]
    (run,) = data_of(page_of(Model(events), "x"))["runs"]
    assert run["streams"][0]["spans"] == [["a", 3, None, []]]


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a model; what the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(model: Model, **options):
        path = tmp_path / "page.html"
        path.write_text(page_of(model, "a run"), encoding="utf-8", errors="backslashreplace")
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.extend(_elsewhere(request.url)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _elsewhere(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [url]


def test_the_tree_and_the_text_by_keyboard(opened):
    page = opened(Model(demo_events(closed=True)))
    assert page.locator("#detail-title").inner_text().startswith("ideas[1]")
    tree = page.locator("#tree")
    tree.focus()
    page.keyboard.press("Home")
    assert "ideas[0]" in page.locator("[aria-selected=true]").inner_text()
    assert page.locator("#text").inner_text() == "Think of rain. Water falls. First: umbrellas"
    hows = page.locator("#text span").evaluate_all("spans => spans.map(one => one.dataset.how)")
    assert hows == ["computed", "sampled", "sampled", "sampled", "joined"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.locator("#text").inner_text() == " Second: puddles 日本"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("[role=treeitem]").count() == 9
    assert page.locator("[aria-expanded=false]").count() == 1


def test_the_probability_of_a_token_with_its_alternatives(opened):
    page = opened(Model(demo_events(closed=True)))
    page.locator("#tree [role=treeitem]").first.click()
    token = page.locator("#text span[data-p]").first
    token.hover()
    told = page.locator("#tip").inner_text()
    assert told == '" Water" 77.9%, sampled\n  " Water" 77.9%\n  " other" 22.3%'
    assert token.get_attribute("aria-label") == told


def test_search_and_errors(opened):
    page = opened(Model(demo_events(closed=True)))
    page.keyboard.press("/")
    page.keyboard.type("umbrellas")
    assert page.locator("#found").inner_text() == "2 of 11 streams"
    page.keyboard.press("Enter")
    assert page.locator("#text mark").first.inner_text() == "umbrellas"
    page.keyboard.press("Escape")
    assert page.locator("[role=treeitem]").count() == 11
    errors = page.locator("#errors li")
    assert errors.count() == 4
    errors.nth(1).locator("button").click()
    assert page.locator("#detail-title").inner_text().startswith("agent")
    assert "KeyError('Lyon')" in page.locator("#ops").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_on_their_background(opened, scheme):
    """Contrast by WCAG: 4.5 to 1 for text."""
    page = opened(Model(demo_events(closed=True)), color_scheme=scheme)
    page.locator("#tree [role=treeitem]").first.click()
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 50
    assert [one for one in ratios if one[0] < 4.5] == []
    page.locator("#theme").click()
    assert [one for one in page.evaluate(CONTRAST) if one[0] < 4.5] == []


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.className === "skip") continue;
    if (/^(SCRIPT|STYLE)$/.test(element.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(back(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, element.outerHTML.slice(0, 90)]);
  }
  return found;
}"""


def test_every_control_has_a_name(opened):
    page = opened(Model(demo_events(closed=True)))
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas, [tabindex], [role=tree]")]
          .filter((one) => !(one.ariaLabel || one.labels?.length || one.innerText?.trim()
            || one.getAttribute("aria-labelledby") || one.title || one.hidden))
          .map((one) => one.outerHTML.slice(0, 90))"""
    )
    assert unnamed == []


def test_twenty_thousand_events_open_and_scroll(opened):
    model = Model(crowd_events(20_000))
    assert model.events >= 20_000
    began = time.perf_counter()
    page = opened(model)
    spent = time.perf_counter() - began
    assert spent < 8  # it is a tenth of that on a machine that does nothing else
    slowest = page.evaluate(
        """async () => {
          const tree = document.getElementById("tree");
          let slowest = 0;
          for (let at = 0; at < tree.scrollHeight; at += 700) {
            const began = performance.now();
            tree.scrollTop = at;
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            slowest = Math.max(slowest, performance.now() - began);
          }
          return slowest;
        }"""
    )
    assert slowest < 1000
    assert page.locator("[role=treeitem]").count() < 100


def crowd_events(count: int) -> list:
    """The demo again and again, each time with streams and requests of its own."""
    told = []
    times = 0
    while len(told) < count:
        for event in demo_events():
            for name in ("stream_id", "parent_id", "for_stream"):
                value = getattr(event, name, None)
                if value is not None:
                    object.__setattr__(event, name, value + 20 * times)
            if getattr(event, "request_id", None) is not None:
                object.__setattr__(event, "request_id", event.request_id + 20 * times)
            object.__setattr__(event, "time", event.time + times)
            if times == 0 or type(event).__name__ != "RuntimeEvent":
                told.append(event)
        times += 1
    return told
