"""A judge of this machine that speaks as OpenAI's endpoints do."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret"
Reply = tuple[int, Any, dict[str, str]]


class Server(ThreadingHTTPServer):
    """Answers as `reply` says and keeps what it was asked."""

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked, self.lock = reply, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        with server.lock:
            server.asked.append((self.path, self.headers.get("Authorization"), body))
            code, said, headers = server.reply(body["messages"][0]["content"])
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(reply: Callable[[str], Reply]) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(text: Any, code: int = 200, **headers: str) -> Reply:
    usage = {"prompt_tokens": 100, "completion_tokens": 1}
    return code, {"choices": [{"message": {"content": text}}], "usage": usage}, headers


def longer(question: str) -> Reply:
    """Prefers the longer answer; equal lengths are a tie."""
    a = question.split("Answer A:\n")[1].split("\n\nAnswer B:")[0]
    b = question.split("Answer B:\n")[1].split("\n\nReply")[0]
    return said("tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B")
