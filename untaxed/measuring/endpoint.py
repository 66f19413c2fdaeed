"""An OpenAI-compatible endpoint: one question, one answer as text, tried again while that may help."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import SpecError, short

PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # what another try may mend
REFUSED = (401, 403, 404)  # what no item will get past
LONGEST_ANSWER = 2**20  # bytes
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LOCAL = ("localhost", "127.0.0.1", "::1")


class NoAnswer(Exception):
    """The endpoint has not answered this question; the message says why, without the key."""


class Busy(NoAnswer):
    """It has not answered any of the tries: others will fare alike."""


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: The reply.
        tokens: How many tokens were read and written, where the endpoint says.
    """

    text: str
    tokens: tuple[int, int]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another server."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where questions go; the key is read from the environment at every question and kept nowhere.

    Args:
        url: As ``https://host/v1``; ``/chat/completions`` is added where it is not there.
        model: Its name there.
        key_env: The environment variable that holds the key; None: no key is sent.
        timeout_s: Of one request.
        tries: At most so many requests a question.
        parameters: Further fields of the request, such as ``{"max_tokens": 16}``.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout_s: float = 60.0
    tries: int = 6
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """Raises a `SpecError` where the variable is not set, or the key would travel unprotected."""
        check_url(self.url, has_key=self.key_env is not None)
        self._key()

    def ask(self, question: str) -> Answer:
        """The answer to one question.

        Raises:
            NoAnswer: It cannot be had, after all tries where trying again might help (`Busy`).
            SpecError: The endpoint refuses key, model or address, so that no question will be answered.
        """
        for attempt in range(self.tries):
            try:
                return self._answer(question)
            except _Later as later:
                why = later
            if why.wait_s is not None and why.wait_s > LONGEST_WAIT_S:
                raise Busy(f"{why}, and asks for {why.wait_s:.0f} s of patience")
            if attempt + 1 < self.tries:
                self.sleep(_wait_s(attempt) if why.wait_s is None else why.wait_s)
        raise Busy(f"{why} ({self.tries} tries)")

    def _answer(self, question: str) -> Answer:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], **self.parameters}
        key = self._key()
        headers = {"Content-Type": "application/json", "User-Agent": "untaxed"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(_address(self.url), json.dumps(body).encode(), headers)
        try:
            opener = urllib.request.build_opener(_NoRedirect)
            with opener.open(request, timeout=self.timeout_s) as response:
                raw = response.read(LONGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, key)
        except (OSError, http.client.HTTPException) as error:  # no connection, a time-out, an answer that is cut off
            reason = getattr(error, "reason", None) or error
            raise _Later(f"no connection ({_safe(str(reason) or type(reason).__name__, key)})", None) from None
        return _read(raw)

    def _refused(self, error: urllib.error.HTTPError, key: str | None) -> None:
        if error.code in PASSING:
            raise _Later(f"HTTP {error.code}", _retry_after(error.headers.get("Retry-After"))) from None
        said = _safe(error.read(2000).decode("utf-8", "replace"), key)
        if error.code in REFUSED or 300 <= error.code < 400:
            held = f"the key in ${self.key_env}" if self.key_env else "`key_env`, which is not given: no key was sent"
            raise SpecError(
                f"{self.url} refuses {self.model!r} with HTTP {error.code}: {said}; see `endpoint`, `model` and {held}"
            ) from None
        raise NoAnswer(f"HTTP {error.code}: {said}") from None

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        if not (key := os.environ.get(self.key_env, "").strip()):
            raise SpecError(f"the environment variable {self.key_env} is not set; it holds the key of {self.url}")
        return key


class _Later(Exception):
    """Another try may help, after so many seconds where the endpoint says."""

    def __init__(self, why: str, wait_s: float | None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def check_url(url: str, *, has_key: bool = False) -> None:
    """Raises a `SpecError` unless it is the URL of a server, without a secret in it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SpecError(f"endpoint {short(url, 80)}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SpecError(f"endpoint {short(url, 80)}: expected https://HOST/…")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SpecError(
            "endpoint: only scheme, host and path may stand there; a key belongs into the variable `key_env`"
        )
    if has_key and parts.scheme == "http" and host not in LOCAL:
        raise SpecError(f"endpoint {url}: the key would be readable on its way; use https")


def _address(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith("/chat/completions") else f"{url}/chat/completions"


def _wait_s(attempt: int) -> float:
    """Twice as long at every try, with chance in it so that parallel questions do not come back together."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.SystemRandom().uniform(0.5, 1.0)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None where there is none that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _read(raw: bytes) -> Answer:
    try:
        if len(raw) > LONGEST_ANSWER:
            raise ValueError
        reply = json.loads(raw)
        text = reply["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NoAnswer("the reply is no chat completion") from None
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Answer(text, tuple(count if type(count) is int else 0 for count in counts))  # type: ignore[arg-type]


def _safe(text: str, key: str | None) -> str:
    """A server's words on one line, cut, and without the key, which some repeat."""
    return " ".join(text.replace(key or "\0", "***").split())[:200]
