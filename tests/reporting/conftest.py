"""One fabricated study for all tests of reports; nobody writes into it."""

import json

import pytest
from fabricated import fabricate


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("fabricated") / "study", seeds=5, items=120)


@pytest.fixture
def summary(study):
    return json.loads((study / "summary.json").read_text())
