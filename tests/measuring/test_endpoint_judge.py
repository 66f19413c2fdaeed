"""An endpoint as judge, against a server of this machine: what is asked, kept, tried again, and never made up."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY, Reply, Server, longer, said, serving

from untaxed.errors import SpecError
from untaxed.measuring.endpoint import Endpoint, _retry_after, check_url
from untaxed.measuring.endpoint_judge import DOWN, EndpointJudge, Price, verdict_of


def judge(server: Server, cache: Path, waits: list[float] | None = None, **settings: Any) -> EndpointJudge:
    own = {name: settings.pop(name) for name in ("parallel", "price") if name in settings}
    sleep = (lambda _: None) if waits is None else waits.append
    settings = {"key_env": "JUDGE_KEY", "sleep": sleep, "parameters": {"temperature": 0}, **settings}
    return EndpointJudge("judged", Endpoint(server.url, "strict", **settings), cache, **{"parallel": 1, **own})


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


ROWS = (["p1", "p2", "p3"], ["long answer", "x", "same"], ["short", "longer", "size"])


def test_both_orders_are_asked_and_answers_kept(tmp_path: Path) -> None:
    with serving(longer) as server:
        assert judge(server, tmp_path, parallel=3)(*ROWS) == [1.0, 0.0, 0.5]
        path, key, body = server.asked[0]
        assert (path, key) == ("/v1/chat/completions", f"Bearer {KEY}")
        assert (body["model"], body["temperature"]) == ("strict", 0)
        assert len(server.asked) == 6
        assert judge(server, tmp_path)(*ROWS) == [1.0, 0.0, 0.5]
        assert len(server.asked) == 6  # kept by content
        assert judge(server, tmp_path, parameters={"temperature": 1})(*ROWS) == [1.0, 0.0, 0.5]
        assert len(server.asked) == 12  # another question to another judge
    assert KEY not in "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_a_judge_that_likes_a_place_prefers_nobody(tmp_path: Path) -> None:
    with serving(lambda _: said("A")) as server:
        assert judge(server, tmp_path)(*ROWS) == [0.5, 0.5, 0.5]


def test_a_busy_endpoint_is_asked_again_after_the_time_it_names(tmp_path: Path) -> None:
    busy = iter([(429, {}, {"Retry-After": "7"}), (503, b"", {}), (500, b"oops", {})])
    waits: list[float] = []
    with serving(lambda question: next(busy, None) or longer(question)) as server:
        assert judge(server, tmp_path, waits)(*ROWS) == [1.0, 0.0, 0.5]
        assert len(server.asked) == 9
    assert waits[0] == 7
    assert 1 <= waits[1] <= 2 <= waits[2] <= 4  # twice as long at every try, less a random part


def test_what_is_no_answer_gives_no_score(tmp_path: Path) -> None:
    replies = {"p1": said("Both have merits."), "p2": said(None), "p3": (400, {"error": f"bad {KEY}"}, {})}

    def reply(question: str) -> Reply:
        return next(value for prompt, value in replies.items() if prompt in question)

    with serving(reply) as server:
        first, second, third = judge(server, tmp_path)(*ROWS)
        assert first == "the reply is neither A nor B nor tie"
        assert second == "the reply is no chat completion"
        assert third == 'HTTP 400: {"error": "bad ***"}'
        replies.update({prompt: said("A") for prompt in replies})
        assert judge(server, tmp_path)(*ROWS) == [0.5, 0.5, 0.5]  # nothing of it was kept


def test_one_order_without_an_answer_is_no_outcome_and_the_other_is_kept(tmp_path: Path) -> None:
    with serving(lambda question: said("?") if "Answer A:\nshort" in question else longer(question)) as server:
        made = judge(server, tmp_path)
        assert made(["p"], ["long answer"], ["short"]) == ["the reply is neither A nor B nor tie"]
        made(["p"], ["long answer"], ["short"])
        assert len(server.asked) == 3


def test_an_endpoint_that_is_down_is_left_alone_and_the_run_goes_on_later(tmp_path: Path) -> None:
    up = False
    rows = [[f"{kind}{n}" * (n % 3 + 1) for n in range(12)] for kind in ("p", "a", "bb")]
    with serving(lambda question: longer(question) if up else (503, b"", {})) as server:
        found = judge(server, tmp_path, tries=2)(*rows)
        assert found[:4] == ["HTTP 503 (2 tries)"] * 4
        assert found[4:] == [DOWN] * 8
        assert len(server.asked) == 16
        up = True
        assert judge(server, tmp_path)(*rows) == [0.0] * 12


def test_a_half_written_answer_is_asked_again(tmp_path: Path) -> None:
    with serving(longer) as server:
        judge(server, tmp_path)(*ROWS)
        [file] = tmp_path.iterdir()
        file.write_text(file.read_text()[:-5])
        assert judge(server, tmp_path)(*ROWS) == [1.0, 0.0, 0.5]
        assert judge(server, tmp_path)(*ROWS) == [1.0, 0.0, 0.5]
        assert len(server.asked) == 7


def test_a_wait_beyond_patience_is_no_wait(tmp_path: Path) -> None:
    waits: list[float] = []
    with serving(lambda _: (429, b"", {"Retry-After": "3600"})) as server:
        found = judge(server, tmp_path, waits)(*ROWS)
    assert found == ["HTTP 429, and asks for 3600 s of patience"] * 3
    assert waits == []


@pytest.mark.parametrize("code", [401, 403, 404, 307])
def test_a_refusal_ends_the_run_and_the_key_goes_nowhere_else(tmp_path: Path, code: int) -> None:
    with serving(longer) as other:
        with serving(lambda _: (code, {"error": f"no {KEY}"}, {"Location": f"{other.url}/chat/completions"})) as server:
            with pytest.raises(SpecError, match=rf"refuses 'strict' with HTTP {code}.* see `endpoint`") as caught:
                judge(server, tmp_path)(*ROWS)
            assert len(server.asked) == 1
        assert other.asked == []
    assert KEY not in str(caught.value)


def test_no_server_there_is_a_reason(tmp_path: Path) -> None:
    with serving(longer) as server:
        pass
    found = judge(server, tmp_path, tries=2)(*ROWS)
    assert "no connection (" in str(found[0])
    assert KEY not in str(found)


def test_requests_and_cost_are_said_before_and_after(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "untaxed.prepare")
    with serving(longer) as server:
        judge(server, tmp_path, price=Price(0.0, 1e5))(*ROWS)
    before, after = (record.getMessage() for record in caplog.records)
    assert before.startswith(f"judged: 6 requests to {server.url} (strict), at most about 9.60 at")
    # at most 16 tokens an answer; 6 were written
    assert after == "judged: 6 requests answered, 600 tokens read and 6 written, 0.60 at the price given"
    assert KEY not in caplog.text


def test_the_most_that_may_be_asked_is_known_before_anything_is_written(tmp_path: Path) -> None:
    with serving(longer) as server:
        said = judge(server, tmp_path, price=Price(0.0, 1e5)).forecast(["p"] * 50, new_tokens=8, models=3)
        assert said == (
            f"judged: at most 300 requests to {server.url} (strict) for 3 models, at most about 480.00 at the price "
            "given, less what was answered before; Ctrl-C stops before any"
        )
        assert server.asked == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/v1", "expected https://HOST"),
        ("host/v1", "expected https://HOST"),
        ("https://me:pass@host/v1", "only scheme, host and path"),
        ("https://host/v1?key=1", "only scheme, host and path"),
        ("http://host/v1", "the key would be readable on its way; use https"),
        ("https://host:port/v1", "endpoint 'https://host:port/v1'"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        check_url(url, has_key=True)
    assert "pass" not in str(caught.value) or "me:pass" not in str(caught.value)


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(SpecError, match="environment variable JUDGE_KEY is not set"):
        Endpoint("https://host/v1", "m", "JUDGE_KEY").check()
    Endpoint("http://host/v1", "m").check()


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", "A"), (" b.\n\nBecause it is longer.", "B"), ("**A**", "A"), ("Answer B", "B"), ("TIE", "TIE"),
        ("The better answer is A.", "A"), ("B is better", "B"),
        ("", None), ("A tie", None), ("A or B", None), ("AB", None), ("Apples", None), ("A is worse", None),
        ("neither", None), ("Both", None),
    ],
)  # fmt: skip
def test_only_a_clear_reply_is_a_verdict(reply: str, verdict: str | None) -> None:
    assert verdict_of(reply) == verdict


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert (_retry_after("soon"), _retry_after(None), _retry_after("2.5")) == (None, None, 2.5)
