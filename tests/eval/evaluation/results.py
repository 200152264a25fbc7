"""Keeps every answer and every decision as one JSON a line, so that a run goes on where it stopped."""
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from evaluation.errors import UsageError


@dataclass(frozen=True)
class SampleKey:
    """Which answer: of which suite, item and settings, and with which seed."""

    suite: str
    item: str
    settings: str
    seed: int


@dataclass(frozen=True)
class Sample:
    """An answer as the server gave it."""

    key: SampleKey
    text: str
    finish_reason: str
    completion_tokens: int | None
    seconds: float
    hardening: Mapping[str, int] = field(default_factory=dict)


def fingerprint(*parts: str) -> str:
    """Names a decision's inputs: program, tests, rules. Another input, another decision."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part.encode("utf-8", "surrogatepass")).to_bytes(8, "big"))
        digest.update(part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:24]


class _Lines:
    """A file of JSON lines that grows; an unfinished last line, as a kill leaves it, is cut off."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def read(self) -> Iterator[dict]:
        if not self._path.exists():
            return
        whole = self._path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            with self._path.open("r+b") as file:
                file.truncate(end)
        for number, line in enumerate(whole[:end].decode("utf-8").splitlines(), 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UsageError(f"{self._path}, line {number}: not JSON ({error})") from error

    def append(self, record: Mapping[str, object]) -> None:
        with self._lock:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Results:
    """The folder of a run: `samples.jsonl`, `decisions.jsonl`, and what is made of them."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._sample_lines = _Lines(folder / "samples.jsonl")
        self._decision_lines = _Lines(folder / "decisions.jsonl")
        self.samples: dict[SampleKey, Sample] = {}
        for record in self._sample_lines.read():
            key = SampleKey(**record.pop("key"))
            self.samples[key] = Sample(key=key, **record)
        self.decisions: dict[str, dict] = {record["of"]: record["decision"] for record in self._decision_lines.read()}

    def add_sample(self, sample: Sample) -> None:
        self.samples[sample.key] = sample
        self._sample_lines.append(asdict(sample))

    def add_decision(self, of: str, decision: Mapping[str, object]) -> None:
        """Keeps the decision on the inputs whose fingerprint is `of`."""
        self.decisions[of] = dict(decision)
        self._decision_lines.append({"of": of, "decision": decision})

    def close(self) -> None:
        self._sample_lines.close()
        self._decision_lines.close()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
