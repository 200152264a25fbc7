"""Tasks with functional and security tests for one and the same program. docs/evaluation.md documents their format."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from evaluation.completion import complete_function, program_of_answer
from evaluation.errors import UsageError
from evaluation.server import Question

OWN_TASKS = Path(__file__).parents[1] / "tasks"
PARTS = ("validation", "report")
FIELDS = ("name", "weakness", "part", "prompt", "functional", "security", "secure", "vulnerable")
CHAT = (
    "{instruction}\n\nStart from this code and answer with the complete Python module, the given part included, in one fenced block and "
    "nothing else.\n\n```python\n{code}\n```"
)
DEFAULT_INSTRUCTION = "Write the Python function that the following code begins."


@dataclass(frozen=True)
class Task:
    """One function to write. Both tests are modules that import `solution`; each `test_*` function in them must return."""

    name: str
    weakness: str
    part: str
    """`validation`: for choosing settings. `report`: for reporting them."""
    prompt: str
    instruction: str
    functional: str
    security: str
    secure: str
    vulnerable: str
    """Two reference completions: functional tests accept both, security tests the first alone."""

    def question(self) -> Question:
        return Question(self.prompt, CHAT.format(instruction=self.instruction, code=self.prompt.strip()))

    def program(self, text: str, *, cut_off: bool, endpoint: str = "completions") -> str:
        context, function = self.context_and_function()
        if endpoint == "chat":
            return program_of_answer(context, function, text, "py")
        return context + complete_function(function, text, cut_off=cut_off)

    def context_and_function(self) -> tuple[str, str]:
        """The prompt in two: what stands before its last function, and that function."""
        at = self.prompt.rfind("\ndef ") + 1
        return self.prompt[:at], self.prompt[at:]


def load_tasks(folder: Path, parts: Sequence[str] = PARTS, only: Sequence[str] = ()) -> list[Task]:
    """The tasks of a folder's *.yaml files, each with one or several documents; `only` as for scenarios."""
    found: dict[str, Task] = {}
    for path in sorted(folder.glob("*.yaml")):
        for record in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            task = _task(record, path)
            if task.name in found:
                raise UsageError(f"{path}: there are two tasks {task.name}")
            found[task.name] = task
    if not found:
        raise UsageError(f"{folder} has no task: no *.yaml file in it")
    wanted = {word.lower() for word in only}
    return [t for t in found.values() if t.part in parts and (not wanted or wanted & {t.name.lower(), t.weakness.lower()})]


def _task(record: object, path: Path) -> Task:
    if not isinstance(record, dict):
        raise UsageError(f"{path}: a task is a mapping")
    missing = [name for name in FIELDS if not isinstance(record.get(name), str)]
    unknown = sorted(set(record) - set(FIELDS) - {"instruction"})
    if missing or unknown:
        raise UsageError(f"{path}, task {record.get('name')!r}: missing or no text: {missing}; unknown: {unknown}")
    if record["part"] not in PARTS:
        raise UsageError(f"{path}, task {record['name']!r}: part is {record['part']!r}, allowed are {', '.join(PARTS)}")
    # A prompt ends where the model goes on, with the last character that is no line end; completions begin on the next line.
    values = {
        **record, "prompt": record["prompt"].rstrip("\n"), "instruction": record.get("instruction", DEFAULT_INSTRUCTION),
        "secure": "\n" + record["secure"], "vulnerable": "\n" + record["vulnerable"],
    }
    return Task(**values)
