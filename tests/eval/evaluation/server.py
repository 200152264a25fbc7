"""Asks an OpenAI-compatible server for completions."""
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.configurations import Configuration
from evaluation.errors import UsageError

TRIES = 5
LONGEST_WAIT_SECONDS = 30.0
BUSY = (429, 500, 502, 503, 504)


class ServerError(Exception):
    """The server did not answer, or not as the API promises."""


@dataclass(frozen=True)
class Answer:
    """One completion."""

    text: str
    finish_reason: str
    completion_tokens: int | None
    seconds: float
    hardening: Mapping[str, int] = field(default_factory=dict)
    """Tokens by what hardening did to each, where the server says so."""


@dataclass(frozen=True)
class Question:
    """What one request asks: `prompt` goes to completions, `instruction` to chat."""

    prompt: str
    instruction: str
    stop: Sequence[str] = ()


class Server:
    """The server of one configuration."""

    def __init__(self, configuration: Configuration, *, key_variable: str = "OPENAI_API_KEY", timeout_seconds: float = 600.0):
        self.configuration = configuration
        self._timeout_seconds = timeout_seconds
        key = os.environ.get(key_variable, "")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.model = configuration.model or self._only_model()

    def _only_model(self) -> str:
        models = [entry["id"] for entry in self._ask("/v1/models", None).get("data", [])]
        if len(models) != 1:
            raise UsageError(f"{self.configuration.url} has the models {', '.join(models) or '(none)'}: name one with --model")
        return models[0]

    def complete(self, question: Question, seed: int) -> Answer:
        """Asks once; a server that is busy is asked again, for as long as it says."""
        chat = self.configuration.endpoint == "chat"
        body: dict[str, object] = {**self.configuration.request, "model": self.model, "seed": seed}
        if chat:
            body["messages"] = [{"role": "user", "content": question.instruction}]
        else:
            body["prompt"] = question.prompt
            if question.stop:
                body["stop"] = list(question.stop)
        began = time.monotonic()
        reply = self._ask("/v1/chat/completions" if chat else "/v1/completions", body)
        seconds = time.monotonic() - began
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or "" if chat else choice["text"]
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(f"{self.configuration.url} answered without a choice: {json.dumps(reply)[:500]}") from error
        usage = reply.get("usage") or {}
        return Answer(text, choice.get("finish_reason") or "", usage.get("completion_tokens"), seconds, _hardening(usage))

    def _ask(self, path: str, body: Mapping[str, object] | None) -> dict:
        url = self.configuration.url + path
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, TRIES + 1):
            request = urllib.request.Request(url, data=data, headers=self._headers)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_seconds) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or attempt == TRIES:
                    raise ServerError(f"{url} answered {error.code}: {error.read(2000).decode('utf-8', 'replace')}") from error
                time.sleep(_wait_seconds(error.headers.get("Retry-After"), attempt))
            except (OSError, ValueError) as error:
                if attempt == TRIES:
                    raise ServerError(f"{url}: {error}") from error
                time.sleep(_wait_seconds(None, attempt))
        raise AssertionError("the last try returns or raises")


def _wait_seconds(retry_after: str | None, attempt: int) -> float:
    try:
        wished = float(retry_after or "")
    except ValueError:
        wished = 0.5 * 2.0**attempt
    return min(max(wished, 0.1), LONGEST_WAIT_SECONDS)


def _hardening(usage: Mapping[str, object]) -> dict[str, int]:
    """How often each outcome of hardening occurs, as CoSec's usage counts them; empty for other servers."""
    counted = usage.get("hardening")
    return {str(outcome): int(count) for outcome, count in counted.items()} if isinstance(counted, dict) else {}
