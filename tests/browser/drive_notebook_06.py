"""Notebook 06 in a real browser, used as a reader uses it: `make browser`.

JupyterLab and Notebook 7 run all cells; then the mouse ticks a box, drags a slider and
uploads a file, and the picture and the words must follow. A screenshot of every widget
goes to the folder that the first line of the output names.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from playwright.sync_api import Page, TimeoutError, expect, sync_playwright

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAME = "06_inspecting_activations.ipynb"
PICTURES = Path(tempfile.gettempdir()) / "widget-screenshots"
MINUTE = 60_000  # milliseconds
APPS = {
    "lab": ("/lab/tree/", "JupyterLab Light"),
    "notebook": ("/notebooks/", "JupyterLab Dark"),
}
# Words that stand in one widget only, as its reader sees them.
LABELS = {
    "ActivationInspector": re.compile("channel"),
    "LesionLab": re.compile("Tick the blocks"),
}


@pytest.fixture(scope="module", params=APPS)
def page(request, tmp_path_factory):
    """The notebook, executed here and now, in one of the two applications."""
    folder = tmp_path_factory.mktemp(request.param)
    notebook = nbformat.read(NOTEBOOKS / NAME, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / NAME)
    path, theme = APPS[request.param]
    server, address = _serve(request.param, folder, theme)
    PICTURES.mkdir(exist_ok=True)
    print(f"screenshots: {PICTURES}")
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"))
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.application = request.param
            page.goto(f"{address}{path}{NAME}")
            _run_all(page)
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def _serve(app: str, folder: Path, theme: str) -> tuple[subprocess.Popen, str]:
    """A server as `make lab` starts it, on a free port; off-screen cells are drawn."""
    settings = {
        "apputils-extension/themes": {"theme": theme},
        "apputils-extension/notification": {"fetchNews": "false"},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    home = folder.with_name(folder.name + "-settings")
    for name, values in settings.items():
        file = home / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(home / "server.log", "w")  # noqa: SIM115, the server writes to it
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyter", app, str(folder), "--no-browser"),
            *(f"--port={port}", "--IdentityProvider.token=", "--allow-root"),
        ],
        env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(home / "lab")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5)
            return server, address
        except OSError:
            assert server.poll() is None, (home / "server.log").read_text()
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


def _run_all(page: Page) -> None:
    """Run all cells, again where that came before the kernel was ready for them."""
    waiting = page.locator(".jp-InputPrompt", has_text="[*]")
    last = page.locator(".jp-CodeCell .jp-InputPrompt").last
    page.locator(".jp-InputPrompt").first.wait_for(timeout=2 * MINUTE)
    for _ in range(20):
        with contextlib.suppress(TimeoutError):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click(timeout=5_000)
            waiting.first.wait_for(state="attached", timeout=5_000)
        page.keyboard.press("Escape")
        expect(waiting).to_have_count(0, timeout=5 * MINUTE)
        if re.search(r"\d", last.inner_text()):
            return
    raise AssertionError("the cells do not run")


def widget(page: Page, name: str):
    """The output that holds one widget, scrolled into view."""
    cell = page.locator(".jp-OutputArea-output .widget-vbox")
    cell = cell.filter(has=page.locator(".widget-image")).filter(has_text=LABELS[name])
    found = cell.first
    found.scroll_into_view_if_needed()
    return found


def seen(found) -> tuple[str, str]:
    """The large picture's address, new for every picture, and all words."""
    picture = found.locator("img").last.get_attribute("src")
    return picture, " ".join(found.locator(".widget-html-content").all_inner_texts())


def changed(found, before: tuple[str, str], seconds: int = 60) -> tuple[str, str]:
    """Wait until picture and words are others than before."""
    for _ in range(seconds * 10):
        now = seen(found)
        if now[0] != before[0] and now[1] != before[1]:
            return now
        time.sleep(0.1)
    raise AssertionError(f"nothing changed: {before[1][:200]}")


def shoot(found, page: Page, name: str) -> None:
    found.screenshot(path=PICTURES / f"{page.application}-{name}.png")


def test_ticking_a_box_takes_a_block_out(page):
    lab = widget(page, "LesionLab")
    before = seen(lab)
    lab.locator("input[type=checkbox]").nth(4).click()
    changed(lab, before)
    shoot(lab, page, "lesion-lab")


def test_dragging_a_slider_weakens_it(page):
    lab = widget(page, "LesionLab")
    before = seen(lab)
    handle = lab.locator(".widget-slider", has_text="F(x)").locator(".noUi-handle")
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 11):
        page.mouse.move(x + 8 * step, y)
    page.mouse.up()
    changed(lab, before)


def test_an_uploaded_picture_is_inspected(page, tmp_path):
    own = tmp_path / "mine.png"
    Image.linear_gradient("L").convert("RGB").save(own)
    inspector = widget(page, "ActivationInspector")
    before = seen(inspector)
    inspector.locator("select").first.select_option(label="your own picture")
    before = changed(inspector, before)
    with page.expect_file_chooser() as chooser:
        inspector.get_by_role("button", name="PNG or JPEG").click()
    chooser.value.set_files(own)
    changed(inspector, before)
    expect(inspector.get_by_text("mine.png").first).to_be_visible()
    shoot(inspector, page, "activation-inspector")


def test_a_wrong_file_gets_a_sentence(page, tmp_path):
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    inspector = widget(page, "ActivationInspector")
    with page.expect_file_chooser() as chooser:
        inspector.get_by_role("button", name="PNG or JPEG").click()
    chooser.value.set_files(wrong)
    sentence = inspector.get_by_text("neither a PNG nor a JPEG")
    expect(sentence).to_be_visible(timeout=MINUTE)


def test_nothing_inside_a_widget_scrolls_or_overflows(page):
    found = page.locator(".jp-OutputArea-output .widget-vbox:has(.widget-image)")
    assert found.count() >= 4
    for number in range(found.count()):
        one = found.nth(number)
        one.scroll_into_view_if_needed()
        shoot(one, page, f"widget-{number}")
        scrolling = one.evaluate(
            """root => [...root.querySelectorAll('*')].filter(e =>
                /auto|scroll/.test(getComputedStyle(e).overflow) &&
                (e.scrollWidth > e.clientWidth + 1 ||
                 e.scrollHeight > e.clientHeight + 1)).map(e => e.className)"""
        )
        assert scrolling == []
        box = one.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
