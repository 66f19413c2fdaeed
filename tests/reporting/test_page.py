"""The HTML page: complete, self-contained, escaped, and drawn from whatever there is."""

import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from fabricated import fabricate

from untaxed.errors import StoreError
from untaxed.reporting import frontier_svg, html, write_html
from untaxed.reporting.axes import axis, looks
from untaxed.reporting.curves import Curve, alongside, curve, cycles
from untaxed.reporting.directory import read_study
from untaxed.reporting.plots import frontier_plot

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Tags balanced, attributes and headings collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self.open[-1], data.strip()))


@pytest.fixture(scope="module")
def text(study):
    return html(study)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture
def own(study, tmp_path):
    """A copy to break."""
    shutil.copytree(study, tmp_path / "study")
    return tmp_path / "study"


def test_sections_come_in_order(page):
    sections = [words for tag, words in page.headings if tag == "h2"]
    assert sections == [
        "Reward and tax",
        "Arms",
        "What is kept of each ability",
        "Along training",
        "Cycle by cycle",
        "Texts before and after",
        "How this was made",
    ]


def test_page_is_self_contained(page, text):
    assert not {"script", "img", "iframe", "object", "embed"} & set(page.tags)
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href", "action")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'" in text


def test_everything_of_others_is_escaped(text):
    assert "&lt;script&gt;alert(&#39;arm&#39;)&lt;/script&gt;" in text
    assert "&lt;i&gt;made up&lt;/i&gt;" in text
    assert "<b>it</b>" not in text
    assert "<script" not in text


def test_plots_have_names_for_those_who_do_not_see_them(page, text):
    images = [value for tag, name, value in page.attributes if tag == "svg" and name == "role"]
    named = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label" and value]
    assert len(images) == len(named) == 2 + 11 + 4  # the frontier in two sizes, a curve a measure, four by cycle
    assert text.count("</title>") > len(images)
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert scopes.count("col") > 10
    assert scopes.count("row") > 10
    assert page.tags.count("th") == len(scopes)


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert set(targets) <= set(ids)


def test_verdict_failures_and_choices_are_told(text, summary):
    assert summary["verdict"].split(":")[0] in text
    assert "loss is NaN at step 37" in text
    assert "riddles" in text
    assert "3 standard errors" in text
    assert "least select tax on validation" in text
    assert "torch" in text


def test_resets_are_marked_and_drawn_as_a_fall(study):
    files = read_study(study)
    key = files.setting("elastic_reset", {})["runs"]["0"]
    found = curve([files.runs[key]["points"][:13]], "reward", "gold", files.initial)
    assert found.resets == [60, 120, 180]
    at = [index for index, step in enumerate(found.steps) if step == 60]
    assert found.steps[0] == 0
    assert len(at) == 2
    assert found.mean[at[1]] < found.mean[at[0]]


def test_colours_and_shapes_tell_arms_apart():
    names = [("plain", True, False), ("early_stopping", False, True), *((f"arm {i}", False, False) for i in range(12))]
    found = looks(names)
    assert found["plain"].style == "arm-plain"
    assert len({(look.style, look.marker) for look in list(found.values())[2:8]}) == 6


@pytest.mark.parametrize("values", [[0.3, 0.3], [0.0], [], [-1e-9, 1e-9], [1e6, 3e6], [0.11, 0.93], [-5, -4.99]])
def test_axes_hold_their_values_with_few_round_ticks(values):
    scale = axis(values, 0, 100, most=6)
    assert 1 <= len(scale.ticks) <= 8
    assert len({label for _, label in scale.ticks}) == len(scale.ticks)
    assert all(0 <= scale(value) <= 100 for value in values)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [0.3, 1.0], [0.0, 0.97]])
def test_axes_of_shares_end_at_0_and_1(values):
    scale = axis(values, 0, 100, share=True)
    assert 0 <= scale.low < scale.high <= 1
    assert all(0 <= float(label) <= 1 for _, label in scale.ticks)
    assert axis([*values, 1.2], 0, 100, share=True).high == 1.2


def test_a_curve_of_a_share_that_stays_whole_has_no_room_above(own):
    for file in [own / "initial" / "result.json", *own.glob("runs/*/result.json")]:
        content = json.loads(file.read_text())
        for point in content["points"]:
            point["validation"]["abilities"]["reading"] = 1.0
        file.write_text(json.dumps(content))
    figure = re.search(r"<strong>reading</strong>.*?</svg>", html(own), re.DOTALL)[0]
    labels = [float(label) for label in re.findall(r'text-anchor="end">([0-9.]+)<', figure)]
    assert max(labels) == 1.0


def test_a_frontier_without_any_tax_has_no_room_for_more_than_all(summary):
    for entry in summary["arms"]:
        for point in entry["points"]:
            point["tax"]["select"] |= {"low": 0.0, "mean": 0.0, "high": 0.0}
    plot = frontier_plot(summary, width=660, height=430)
    assert max(float(label) for _, label in plot.y.ticks) == 1.0


def test_unfinished_study_is_drawn_and_says_so(own):
    (own / "summary.json").unlink()
    for run in sorted((own / "runs").iterdir())[:3]:
        shutil.rmtree(run)
    text = html(own)
    Page(text)
    assert "Unfinished:" in text
    assert "Along training" in text
    assert "What follows is what there is." in text


def test_unfinished_study_shows_the_numbers_it_is_given(own, summary):
    (own / "summary.json").unlink()
    assert summary["verdict"].split(":")[0] in html(own, summary)


def test_study_without_any_run_is_drawn(own):
    shutil.rmtree(own / "runs")
    shutil.rmtree(own / "initial")
    (own / "summary.json").unlink()
    assert "0 of 25 runs are complete" in html(own)


def test_nothing_but_a_study_is_read(tmp_path, own):
    with pytest.raises(StoreError, match=r"study\.json is missing"):
        html(tmp_path)
    (own / "study.json").write_text("{")
    with pytest.raises(StoreError, match=r"cannot be read as JSON .*; put a copy of it back"):
        html(own)


def test_page_is_written_whole_beside_what_was_there(own, tmp_path):
    assert write_html(own) == own / "report.html"
    before = (own / "report.html").read_bytes()
    assert write_html(own, tmp_path / "page.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "study"]
    assert "report" in str(write_html(own))


def test_frontier_is_a_picture_of_its_own(summary):
    picture = ElementTree.fromstring(frontier_svg(summary))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert "script" not in {element.tag.split("}")[1] for element in picture.iter()}
    assert "<script>alert('arm')</script>" in [element.text for element in picture.iter()]
    for entry in summary["arms"]:
        entry["points"] = []
    assert frontier_svg(summary) is None


def test_verdictless_studies_are_drawn(tmp_path):
    directory = fabricate(tmp_path / "study", seeds=1, items=30)
    summary = json.loads((directory / "summary.json").read_text())
    for entry in summary["arms"]:
        entry["points"] = []
        entry["against_early_stopping"] = None
    text = html(directory, summary)
    assert "No point has both a reward and a tax on test." in text
    assert "No arm can be compared" in text


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(study, tmp_path):
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "nowhere" / "page.html", tmp_path / "folder"):
        with pytest.raises(StoreError, match=r"cannot be written|is a folder"):
            write_html(study, target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder"]


def test_a_curve_falls_into_cycles_and_another_is_cut_alike():
    resets = Curve([0, 2, 4, 4, 6, 8, 8, 9], list("abcdefgh"), list("abcdefgh"), list("abcdefgh"), [4, 8])
    assert [(part.steps, part.mean) for part in cycles(resets)] == [
        ([0, 2, 4], ["a", "b", "c"]),
        ([0, 2, 4], ["d", "e", "f"]),
        ([0, 1], ["g", "h"]),
    ]
    plain = Curve([0, 2, 4, 6, 8, 9], list("uvwxyz"), list("uvwxyz"), list("uvwxyz"), [])
    assert [(part.steps, part.mean) for part in alongside(plain, resets)] == [
        ([0, 2, 4], ["u", "v", "w"]),
        ([0, 2, 4], ["w", "x", "y"]),
        ([0, 1], ["y", "z"]),
    ]


def test_cells_say_what_really_fell_and_older_summaries_have_none(text, own, summary):
    fell = sum(ability["real"] == "drop" for entry in summary["arms"] for ability in entry["abilities"].values())
    assert text.count('class="span found">fell<') == fell > 0
    assert "corrected for the number of the arm&#39;s abilities" in text or "corrected for the number" in text
    for entry in summary["arms"]:
        for ability in entry["abilities"].values():
            del ability["p"], ability["p_adjusted"], ability["real"]
    older = html(own, summary)
    assert "span found" not in older
    assert "corrected for the number of the arm's" not in older
