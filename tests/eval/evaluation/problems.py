"""Problems with functional tests: HumanEval, as published (JSONL, plain or gzipped) or as one YAML file a problem."""
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from evaluation.completion import cut_at_stops, program_of_answer
from evaluation.errors import UsageError
from evaluation.server import Question

STOPS = ("\ndef", "\n#", "\nif", "\nclass", "\nprint")
CHAT = (
    "Complete the following Python function. Answer with the complete function, its imports included, in one fenced block and nothing "
    "else.\n\n```python\n{code}\n```"
)


@dataclass(frozen=True)
class Problem:
    """One function to complete, and tests that raise where it is wrong."""

    name: str
    prompt: str
    tests: str
    stops: tuple[str, ...]

    def question(self) -> Question:
        return Question(self.prompt, CHAT.format(code=self.prompt.strip()), self.stops[:4])

    def program(self, text: str, *, endpoint: str = "completions") -> str:
        if endpoint == "chat":
            return program_of_answer(self._preamble(), self.prompt[len(self._preamble()):], text, "py")
        return self.prompt + cut_at_stops(text, self.stops) + "\n"

    def _preamble(self) -> str:
        """What stands before the last function of the prompt: imports and helpers."""
        at = self.prompt.rfind("\ndef ")
        return self.prompt[: at + 1] if at >= 0 else ""


def load_problems(path: Path) -> list[Problem]:
    """The problems of a folder of YAML files or of the published file."""
    if path.is_dir():
        problems = [_of_yaml(file) for file in sorted(path.glob("*.yaml"))]
    elif path.is_file():
        whole = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        problems = [_of_line(json.loads(line)) for line in whole.decode("utf-8").splitlines() if line.strip()]
    else:
        raise UsageError(f"{path} is neither a folder nor a file")
    if not problems:
        raise UsageError(f"{path} has no problem; expected *.yaml files or HumanEval's JSONL")
    return problems


def _of_yaml(path: Path) -> Problem:
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return Problem(record["name"], record["prompt"], record["tests"], tuple(record.get("stop_tokens") or STOPS))
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: name, prompt and tests are needed ({error})") from error


def _of_line(record: dict) -> Problem:
    try:
        tests = f"{record['test']}\n\ncheck({record['entry_point']})\n"
        return Problem(record["task_id"], record["prompt"], tests, STOPS)
    except KeyError as error:
        raise UsageError(f"a problem lacks {error}; expected task_id, prompt, test, entry_point") from error
