"""What the tests of the evaluation share: the package, a sandbox, and a server that answers as a test wants."""
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from evaluation.sandbox import Sandbox  # noqa: E402  (the package is found only now)

# Folders and files of others, for tests that need them; without them these are skipped.
SVEN_SCENARIOS = os.environ.get("SVEN_SCENARIOS")
HUMAN_EVAL = os.environ.get("HUMAN_EVAL")


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """A sandbox with every protection. Where there is none, what needs it cannot be tested."""
    found = Sandbox()
    if found.protections.missing():
        pytest.skip(f"no sandbox here: {found.protections.missing()} {found.protections.reason}")
    return found


class FakeServer:
    """An OpenAI-compatible server: `answer` makes the text of each request's body, `failures` come first."""

    def __init__(self) -> None:
        self.answer: Callable[[dict], str] = lambda body: ""
        self.choice: dict = {}
        self.failures: list[tuple[int, dict]] = []
        self.bodies: list[dict] = []
        self.models = ["fake"]
        self._lock = threading.Lock()
        self._running = self.most_running = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(200, {"data": [{"id": name} for name in owner.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._reply(*owner.handle(self.path, body))

            def _reply(self, status: int, reply: dict, headers: dict | None = None) -> None:
                data = json.dumps(reply).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def handle(self, path: str, body: dict) -> tuple[int, dict, dict] | tuple[int, dict]:
        with self._lock:
            if self.failures:
                status, headers = self.failures.pop(0)
                return status, {"error": {"message": "as the test wants"}}, headers
            self.bodies.append(body)
            self._running += 1
            self.most_running = max(self.most_running, self._running)
        try:
            text = self.answer(body)
        finally:
            with self._lock:
                self._running -= 1
        content = {"message": {"content": text}} if path == "/v1/chat/completions" else {"text": text}
        return 200, {"choices": [{**content, "finish_reason": "stop", **self.choice}], "usage": {"completion_tokens": 10}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    found = FakeServer()
    yield found
    found.close()
