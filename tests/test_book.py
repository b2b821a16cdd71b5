"""The book, as readers see it: built without a warning, then every page opened in a real browser."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from filelock import FileLock

pytest.importorskip("sphinx", reason="the book needs Sphinx: pip install '.[book]'")
playwright = pytest.importorskip("playwright.sync_api", reason="opening pages needs playwright: pip install '.[test]'")
from axe_playwright_python.base import AXE_SCRIPT  # noqa: E402

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}

# What the page itself can say once it is drawn.
LOOK = """() => ({
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    links: [...document.querySelectorAll("a[href]")].map(e => e.href),
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    nameless: [...document.images].filter(i => !i.alt.trim() || i.alt.endsWith(".png")).map(i => i.src),
    images: document.images.length,
    equations: document.querySelectorAll(".math").length,
    unrendered: [...document.querySelectorAll(".math")]
        .filter(e => !e.querySelector("mjx-container") || e.querySelector("[data-mjx-error]")).map(e => e.textContent),
})"""
SETTLED = """() => document.readyState == "complete" && (
    !document.querySelector(".math") || window.MathJax?.startup?.promise?.then(() => true))"""

# Figures whose type, nine points of 880 pixels' width, is less than nine pixels high.
SMALL = """() => [...document.querySelectorAll("article img:not(.toggler)")]
    .filter(i => i.clientWidth < 600 || !i.closest("a.figure") || i.closest("a").parentElement.closest("a"))
    .map(i => i.src)"""

# What axe-core finds that keeps people from reading: rule, place and reason. Contrast, which costs most, is looked at
# once for each kind of text on the site: tag, classes and style, and those of what it is in.
AXE = """async options => (await axe.run(options.only ?? document, {
    resultTypes: ["violations"], preload: false,
    ...(options.only ? {runOnly: ["color-contrast"]} : {rules: {"color-contrast": {enabled: false}}})
})).violations.filter(one => ["serious", "critical"].includes(one.impact))
    .flatMap(one => one.nodes.map(n => `${one.id}: ${n.target} ${n.html.slice(0, 120)} ${n.failureSummary}`))"""
TEXTS = """known => {
    const kinds = {};
    for (const e of document.body.querySelectorAll("*")) {
        if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
        let kind = "";
        for (let at = e, n = 0; n < 5 && at; at = at.parentElement, n++)
            kind += `${at.tagName}.${at.className}[${at.getAttribute("style") ?? ""}] `;
        kinds[kind] ??= e;
    }
    window.texts = Object.keys(kinds).filter(kind => !known.includes(kind)).map(kind => kinds[kind]);
    return Object.keys(kinds);
}"""
CONTRAST = f"() => window.texts.length ? ({AXE})({{only: {{include: window.texts}}}}) : []"


@dataclass
class Visit:
    """What was seen of one page."""

    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    phone_width: int = 0
    phone_small: list[str] = field(default_factory=list)
    seen: dict = field(default_factory=dict)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book as `make book` builds it: warnings are errors."""
    out = tmp_path_factory.mktemp("book")
    trees = ROOT / "build" / "doctrees"  # what was read before need not be read again
    trees.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", trees, ".", out]
    with FileLock(trees.with_name(".doctrees.lock")):
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the book is served, on this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine; on Debian and Ubuntu: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def pages(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


@pytest.fixture(scope="module")
def visits(site: Path, address: str, browser: playwright.Browser) -> dict[str, Visit]:
    """Every page, opened once: at a desktop's width, in light and in dark, then at a telephone's."""
    found: dict[str, Visit] = {}
    texts: set[str] = set()
    page = browser.new_page()
    page.set_default_timeout(60_000)

    def now() -> Visit:
        return list(found.values())[-1]

    page.on("console", lambda said: said.type in ("error", "warning") and now().errors.append(said.text))
    page.on("pageerror", lambda error: now().errors.append(str(error)))
    page.on("requestfailed", lambda request: now().failed.append(request.url))
    page.on("response", lambda answer: answer.status >= 400 and now().failed.append(answer.url))
    page.on("request", lambda asked: asked.url.startswith((address, "data:")) or now().elsewhere.append(asked.url))
    for name in pages(site):
        found[name] = Visit()
        look(page, f"{address}/{name}", found[name], texts)
    page.close()
    return found


def look(page: playwright.Page, url: str, found: Visit, texts: set[str]) -> None:
    """Open `url` and put what is seen into `found`; `texts` are the kinds whose contrast is known."""
    page.set_viewport_size(WIDE)
    page.emulate_media(color_scheme="light")
    page.goto(url)
    page.wait_for_function(SETTLED)
    found.seen = page.evaluate(LOOK)
    page.evaluate(AXE_SCRIPT)
    if "/_modules/rfnlib/" not in url:  # source text in one template, which its index has too
        found.findings = page.evaluate(AXE, {})
    texts.update(page.evaluate(TEXTS, list(texts)))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found.findings += page.evaluate(CONTRAST)
    page.set_viewport_size(PHONE)
    found.phone_width = page.evaluate("document.documentElement.scrollWidth")
    found.phone_small = page.evaluate(SMALL)


def where(visits: dict[str, Visit], what: Callable[[Visit], object]) -> dict[str, object]:
    """The pages at which there is something of the kind."""
    return {name: found for name, visit in visits.items() if (found := what(visit))}


def test_it_has_a_page_for_everything(site):
    expected = {"index.html", "search.html", "genindex.html", "CONTRIBUTING.html", "data/README.html"}
    expected |= {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    expected |= {f"docs/how-to/{path.stem}.html" for path in (ROOT / "docs" / "how-to").glob("*.md")}
    modules = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "rfnlib").rglob("*.py")]
    expected |= {f"docs/api/{'.'.join(m.parts).removesuffix('.__init__')}.html" for m in modules}
    assert expected <= set(pages(site))


def test_no_page_complains_or_asks_in_vain(visits):
    assert where(visits, lambda visit: visit.errors + visit.failed) == {}


def test_no_page_asks_another_host(visits):
    assert where(visits, lambda visit: visit.elsewhere) == {}


def test_every_image_is_loaded_and_described(visits):
    assert where(visits, lambda visit: visit.seen["broken"] + visit.seen["nameless"]) == {}
    assert sum(visit.seen["images"] for visit in visits.values()) >= 10


def test_every_equation_is_drawn(visits):
    assert where(visits, lambda visit: visit.seen["unrendered"]) == {}
    assert sum(visit.seen["equations"] for visit in visits.values()) >= 10


def test_every_link_leads_to_a_page_and_a_place_on_it(site, visits, address):
    lost = set()
    for name, visit in visits.items():
        for link in visit.seen["links"]:
            url, anchor = urldefrag(link)
            if not url.startswith(address):
                continue
            target = unquote(urlsplit(url).path).lstrip("/") or "index.html"
            anchors = visits[target].seen["ids"] if target in visits else []
            if not (site / target).is_file() or (anchor and target in visits and unquote(anchor) not in anchors):
                lost.add((name, link.removeprefix(address)))
    assert sorted(lost) == []


def test_nothing_is_wider_than_a_telephone(visits):
    assert where(visits, lambda visit: visit.phone_width > PHONE["width"] and visit.phone_width) == {}


def test_a_figure_is_legible_on_a_telephone_and_opens_alone(visits):
    assert where(visits, lambda visit: visit.phone_small) == {}


def test_nothing_keeps_people_from_reading_it_in_light_or_dark(visits):
    assert where(visits, lambda visit: visit.findings) == {}


def test_search_finds_and_the_colours_can_be_turned(address, browser):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=eigenvalue")
    page.wait_for_selector("#search-results li a")
    assert "rfnlib.sharpness" in page.inner_text("#search-results")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator(".theme-toggle").locator("visible=true").click()  # it begins with what the system has, here light
    assert page.evaluate("document.body.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.close()
