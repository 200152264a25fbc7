"""Each task's tests on its reference solutions."""
from concurrent.futures import ThreadPoolExecutor

import pytest

from evaluation.completion import parse_python
from evaluation.errors import UsageError
from evaluation.execution import run_tests
from evaluation.tasks import OWN_TASKS, load_tasks

TASKS = load_tasks(OWN_TASKS)


@pytest.fixture(scope="module")
def outcomes(sandbox):
    """Every task's tests on both solutions, two at a time."""
    jobs = {(task.name, solution, tests): (task.program(getattr(task, solution), cut_off=False), getattr(task, tests))
            for task in TASKS for solution in ("secure", "vulnerable") for tests in ("functional", "security")}
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(lambda job: run_tests(sandbox, *job), jobs.values()), strict=True))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_functional_tests_accept_both_and_security_tests_tell_them_apart(task, outcomes):
    for solution in ("secure", "vulnerable"):
        outcome = outcomes[task.name, solution, "functional"]
        assert outcome.passed, f"functional tests on the {solution} solution: {outcome.reason}"
    assert outcomes[task.name, "secure", "security"].passed, outcomes[task.name, "secure", "security"].reason
    assert not outcomes[task.name, "vulnerable", "security"].passed


@pytest.mark.parametrize("task", load_tasks(OWN_TASKS, ["report"]), ids=lambda task: task.name)
def test_a_solution_that_does_nothing_is_not_correct(task, sandbox):
    assert not run_tests(sandbox, task.program("\n    pass", cut_off=False), task.functional).passed


def test_there_are_enough_and_half_of_them_are_for_choosing():
    assert len(TASKS) >= 40 and len({task.weakness for task in TASKS}) >= 15
    for weakness in {task.weakness for task in TASKS}:
        assert sorted(task.part for task in TASKS if task.weakness == weakness) == ["report", "validation"], weakness


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_chat_answer_in_any_form_is_the_same_program(task):
    whole = task.program(task.secure, cut_off=False)
    for code in (whole, whole[len(task.context_and_function()[0]):]):
        found = task.program(f"Here it is:\n\n```python\n{code}```\n\nIt is secure.", cut_off=False, endpoint="chat")
        assert parse_python(found) is not None
        assert found.count(task.context_and_function()[1].splitlines()[0]) == 1


@pytest.mark.parametrize("text, message", [
    ("name: a\nweakness: CWE-1\n", "missing"),
    ("- 1\n", "mapping"),
    ("name: a\nweakness: b\npart: c\nprompt: d\nfunctional: e\nsecurity: f\nsecure: g\nvulnerable: h\n", "allowed are validation, report"),
    ("name: a\nweakness: b\npart: report\nprompt: d\nfunctional: e\nsecurity: f\nsecure: g\nvulnerable: h\nmore: i\n", "unknown: ..more"),
])
def test_a_task_that_is_not_one_is_refused(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_tasks(tmp_path)
