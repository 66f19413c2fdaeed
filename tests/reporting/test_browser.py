"""The page in a real browser: no console errors, plots drawn, no sideways scroll, light and dark."""

import html as escaping
import json
import re
import shutil
import subprocess

import pytest

from untaxed.reporting import html

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was not opened in one")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--hide-scrollbars"),
]
WIDTHS = (390, 1280)
# The page stands in frames, since a headless window is never narrower than 500 pixels; a script outside measures it.
WRAPPER = """<!doctype html><meta charset="utf-8"><body style="margin:0">{frames}<pre id="found"></pre>
<script>window.onload = () => {{
  const measured = frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    const boxes = [...page.querySelectorAll("svg.plot")].map(plot => plot.getBoundingClientRect());
    const shown = boxes.filter(box => box.width);
    return {{
      scroll: root.scrollWidth, client: root.clientWidth, plots: shown.length,
      narrowest: Math.min(...shown.map(box => box.width)), rightmost: Math.max(...shown.map(box => box.right)),
      marks: page.querySelectorAll("svg.plot .mark").length,
      page: getComputedStyle(root).backgroundColor, ink: getComputedStyle(page.body).color,
      verdict: page.querySelector(".verdict").getBoundingClientRect().height,
    }};
  }};
  document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(measured));
}}</script>"""
FRAME = '<iframe style="border:0; width:{width}px; height:2000px" srcdoc="{page}"></iframe>'


@pytest.fixture(scope="module")
def text(study):
    return html(study)


def browse(tmp_path, file, *flags):
    """Opens a file; returns what the browser printed and the lines of its console."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_page_fits_and_follows_the_colour_scheme(tmp_path, text, scheme, dark):
    frames = "".join(FRAME.format(width=width, page=escaping.escape(text)) for width in WIDTHS)
    file = tmp_path / "wrapper.html"
    file.write_text(WRAPPER.format(frames=frames))
    flags = ["--dump-dom", "--window-size=1400,1200", f"--blink-settings=preferredColorScheme={scheme}"]
    dom, console = browse(tmp_path, file, *flags)
    assert console == []
    written = re.search(r'<pre id="found">(.*?)</pre>', dom)
    for width, found in zip(WIDTHS, json.loads(escaping.unescape(written[1])), strict=True):
        assert found["scroll"] == found["client"] == width
        assert found["plots"] == 1 + 11 + 4  # one frontier of the two sizes, a curve a measure, four by cycle
        assert found["narrowest"] > 200
        assert found["rightmost"] <= width
        assert found["marks"] > 20
        assert found["verdict"] > 20
        brightness = {name: sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("page", "ink")}
        assert (brightness["page"] < brightness["ink"]) == dark


def test_console_errors_would_be_seen(tmp_path):
    file = tmp_path / "broken.html"
    file.write_text("<script>throw new Error('seen')</script>")
    _, console = browse(tmp_path, file, "--dump-dom")
    assert any("seen" in line for line in console)


def test_screenshot_shows_a_drawn_page(tmp_path, text):
    file, picture = tmp_path / "report.html", tmp_path / "report.png"
    file.write_text(text)
    browse(tmp_path, file, "--window-size=1280,1600", f"--screenshot={picture}")
    # a blank page of this size is below 20 kB
    assert picture.stat().st_size > 100_000


def test_page_prints(tmp_path, text):
    file, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    file.write_text(text)
    browse(tmp_path, file, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF")
