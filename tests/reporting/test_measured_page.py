"""The page of `untaxed measure` in a real browser: fits, follows the colour scheme, and filters without a script."""

from __future__ import annotations

import html as escaping
import json
import re
from typing import Any

import pytest
from test_browser import BROWSER, FRAME, WIDTHS, WRAPPER, browse

from untaxed.reporting.measured_page import html

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was not opened in one")


def number(mean: float, half: float = 0.05) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 200, "why": None}


def model(name: str, reward: float, tax: float) -> dict[str, Any]:
    item = {"prompt": "what is long " * 30, "expected": "this", "initial": "this", "model": "that, and more of it"}
    ability = {
        **{"value": number(0.9 - tax), "initial": number(0.9), "loss": number(tax), "kept": number(1 - tax)},
        **{"p": 0.001, "q": 0.002, "lost": 20, "won": 4, "items": 200},
    }
    return {
        **{"name": name, "path": f"models/{name}", "content": name, "notes": {}},
        "reward": {"gold": {"value": number(reward), "initial": number(0.4), "change": number(reward - 0.4), "p": 0.0}},
        "abilities": {"facts": ability, "sums": ability},
        "drift": {"forward_kl": {"value": number(0.2)}},
        "tax": {"select": number(tax), "report": number(tax)},
        "items": {"facts": {"lost": [item] * 3, "won": [item]}, "sums": {"lost": [item], "won": []}},
    }


SUMMARY: dict[str, Any] = {
    **{
        "version": 1,
        "initial": {"name": "start", "path": "models/start", "content": "0", "notes": {}},
        "items": "test",
    },
    **{"models": [model("first", 0.6, 0.2), model("second", 0.5, 0.1)], "select": ["facts"], "report": ["sums"]},
    "measures": [
        {"group": group, "name": name, "statistic": "mean", "chance": 0, "unit": unit}
        for group, name, unit in (
            ("reward", "gold", "reward"),
            ("abilities", "facts", "share right"),
            ("abilities", "sums", "share right"),
            ("drift", "forward_kl", "nats a token"),
        )
    ],
    **{"left_out": [], "suite": {"drift": []}, "versions": {"python": "3"}, "host": None, "verdict": "first wins."},
}


def test_the_page_fits_at_both_widths(tmp_path: Any) -> None:
    frames = "".join(FRAME.format(width=width, page=escaping.escape(html(SUMMARY))) for width in WIDTHS)
    file = tmp_path / "wrapper.html"
    file.write_text(WRAPPER.format(frames=frames))
    for scheme, dark in ((1, False), (0, True)):
        flags = ["--dump-dom", "--window-size=1400,1200", f"--blink-settings=preferredColorScheme={scheme}"]
        dom, console = browse(tmp_path, file, *flags)
        assert console == []
        written = re.search(r'<pre id="found">(.*?)</pre>', dom)
        assert written is not None
        for width, found in zip(WIDTHS, json.loads(escaping.unescape(written[1])), strict=True):
            assert found["scroll"] == found["client"] == width
            assert (found["plots"], found["marks"]) == (1, 4)  # one of two sizes is drawn, each has both models
            brightness = {name: sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("page", "ink")}
            assert (brightness["page"] < brightness["ink"]) == dark


def visible(tmp_path: Any, page: str) -> list[str]:
    file = tmp_path / "items.html"
    count = "[...f.contentDocument.querySelectorAll('.item')].filter(i => i.offsetHeight).map(i => i.className)"
    file.write_text(
        f'<iframe id="f" style="width:1000px;height:900px" srcdoc="{escaping.escape(page)}"></iframe><pre id="n"></pre>'
        f"<script>onload = () => {{ const f = document.getElementById('f');"
        f" document.getElementById('n').textContent = JSON.stringify({count}); }}</script>"
    )
    dom, _ = browse(tmp_path, file, "--dump-dom")
    written = re.search(r'<pre id="n">(.*?)</pre>', dom)
    assert written is not None
    return list(json.loads(escaping.unescape(written[1])))


def test_items_are_filtered_by_kind_and_ability(tmp_path: Any) -> None:
    page = html({**SUMMARY, "models": SUMMARY["models"][:1]})
    assert len(visible(tmp_path, page)) == 5
    lost = page.replace('value="both" checked', 'value="both"').replace('value="lost" ', 'value="lost" checked ')
    assert visible(tmp_path, lost) == ["item lost a1"] * 3 + ["item lost a2"]
    facts = page.replace('value="all" checked', 'value="all"').replace('value="a1">', 'value="a1" checked>')
    assert visible(tmp_path, facts) == ["item lost a1"] * 3 + ["item won a1"]
