"""What the items of a study can show: by hand and in words."""

from __future__ import annotations

import numpy as np
import pytest

from untaxed.studies.detectable import detectable, in_words

MEASURES = [
    {"group": "abilities", "name": name, "statistic": "mean", "chance": chance, "unit": "share right"}
    for name, chance in (("facts", 0.0), ("reading", 0.25), ("riddles", 0.5))
]
FACTS = {"measures": MEASURES, "select": ["facts", "reading"], "report": ["riddles"]}
SCORES = {
    f"abilities.{name}": (np.arange(400) < right).astype(float)[:, None]
    for name, right in (("facts", 320), ("reading", 300), ("riddles", 204))
}


def test_rows_by_hand() -> None:
    rows = {row["what"]: row for row in detectable(FACTS, SCORES, "test")}
    # facts: a = 0.8, sigma_d = sqrt(0.16) at r = 0.5: 2.801585 * 0.4 / 20 = 0.056032 of 0.8 above chance
    assert rows["facts"]["loss"] == pytest.approx(0.0561, abs=1e-4)
    assert rows["facts"]["tax"] == pytest.approx(0.0701, abs=1e-4)
    # reading: sigma_d = sqrt(0.1875): 0.060656 of 0.5; both together sqrt(0.0700² + 0.1213²) / 2
    assert rows["reading"]["tax"] == pytest.approx(0.1215, abs=1e-4)
    assert rows["select"]["tax"] == pytest.approx(0.0701, abs=2e-4)
    assert (rows["select"]["loss"], rows["select"]["items"]) == (None, 800)
    assert rows["riddles"]["loss"] is None
    assert rows["riddles"]["why"].startswith("initial is 0.010 above chance (0.500) on test")
    assert "report" not in rows  # one ability, and that one is left out


def test_words() -> None:
    lines = in_words(detectable(FACTS, SCORES, "validation"))
    assert lines[0] == (
        "the least that is found in 80 % of cases at level 0.05, by the noise of validation items, test has its own,"
        " where an item's scores before and after correlate by 0.5:"
    )
    assert lines[1] == "facts: a loss of 0.056 share right, a tax of 0.070 (400 items; 787 for 0.05, 4,918 for 0.02)"
    assert lines[3].startswith("riddles: nothing: initial is 0.010 above chance")
    assert lines[4].startswith("select abilities together: a tax of 0.070 (800 items; ")
    assert in_words([]) == []


def test_what_is_not_measured_yet_is_taken_at_its_worst() -> None:
    measures = [{**one, "items": 400} for one in MEASURES]
    measures[1] = {**measures[1], "statistic": "bleu"}
    known = {"abilities.facts": SCORES["abilities.facts"]}
    rows = {row["what"]: row for row in detectable({**FACTS, "measures": measures}, known, "test", out={})}
    assert (rows["facts"]["from"], rows["riddles"]["from"]) == ("scores", "worst case")
    # right on half of 400 items: 2.801585 * 0.5 / 20 = 0.070040; (2.801585 * 0.5 / 0.05)^2 = 784.9
    assert rows["riddles"]["loss"] == pytest.approx(0.0700, abs=1e-4)
    assert rows["riddles"]["needed"][0] == {"tax": None, "loss": 0.05, "items": 785}
    assert rows["riddles"]["tax"] is None
    assert rows["reading"]["loss"] is None
    assert rows["reading"]["why"] == "it is no mean over items, so that nothing is known before initial is measured"
