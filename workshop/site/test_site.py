"""Click through every page of the built site: `make site-test`.

No link may be broken, no picture missing, nothing wrong in the browser's console, and
nothing asked of another host. At the width of a desktop and of a phone.
"""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import sync_playwright

HTML = Path(__file__).parents[2] / ".site" / "html"
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if "_static" not in path.parts and path.name != "genindex.html"
)
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/")]
WIDTHS = {"desktop": 1280, "phone": 390}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # A browser of the system where there is one, else the one of Playwright.
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(browser, request, host):
    """A page that writes down everything that goes wrong in it."""
    width = WIDTHS[request.param]
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(120_000)  # a slow machine is no broken page
    page.wrong = []

    def answered(response) -> None:
        if response.status >= 400:
            page.wrong.append(f"{response.status} {response.url}")

    def asked(route) -> None:
        if route.request.url.startswith((host, "data:", "blob:")):
            route.continue_()
        else:
            page.wrong.append(f"asks another host: {route.request.url}")
            route.abort()

    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "console",
        lambda line: page.wrong.append(line.text) if line.type == "error" else None,
    )
    page.on("response", answered)
    page.route("**/*", asked)
    yield page
    page.close()


def settle(page) -> None:
    """Wait until the formulas are set."""
    page.wait_for_load_state("networkidle")
    page.evaluate("window.MathJax?.startup?.promise")


def test_the_site_is_built():
    assert {"index.html", "README.html", "search.html"} <= set(PAGES)
    assert len(NOTEBOOKS) >= 10


@pytest.mark.parametrize("name", PAGES)
def test_page(page, host, name):
    page.goto(host + name)
    settle(page)
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed() if image.is_visible() else None
    missing = page.eval_on_selector_all(
        "img", "all => all.filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
    )
    assert not missing
    broken = [link for link in links(page, host) if not leads_somewhere(link, host)]
    assert not broken
    plain = page.eval_on_selector_all(
        ".math", "all => all.filter(m => !m.querySelector('mjx-container')).length"
    )
    assert not plain, "a formula that is not set"
    scroll = page.evaluate("document.documentElement.scrollWidth")
    assert scroll <= page.viewport_size["width"], "the page scrolls sideways"
    assert not page.wrong


def links(page, host) -> list[str]:
    found = page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    return sorted({link for link in found if link.startswith(host)})


def leads_somewhere(link: str, host: str) -> bool:
    address, anchor = urldefrag(link)
    path = HTML / unquote(urljoin(host, address)[len(host) :].split("?")[0])
    if path.is_dir():
        path /= "index.html"
    if not path.is_file():
        return False
    return not anchor or f'id="{unquote(anchor)}"' in path.read_text("utf-8")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_leads_to_colab(page, host, name):
    page.goto(host + name)
    badge = page.locator("a:has(img[alt='Open in Colab'])")
    address = badge.first.get_attribute("href")
    assert address.startswith("https://colab.research.google.com/github/")
    assert address.endswith(name.replace(".html", ".ipynb"))


def test_widget_shows_its_figure_without_a_kernel(page, host):
    page.goto(host + "notebooks/01_residual_equation.html")
    settle(page)
    picture = page.locator(".jupyter-widgets img").first
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("image => image.naturalWidth") > 300
    assert not page.wrong


def test_search_finds_the_block(page, host):
    page.goto(host + "search.html?q=shortcut")
    first = page.locator("#search-results li a").first
    first.wait_for()
    assert page.locator("#search-results li a").count() > 3
    assert not page.wrong
