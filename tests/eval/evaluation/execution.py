"""Runs a program's tests in the sandbox."""
import secrets
import signal
from dataclasses import dataclass

from evaluation.sandbox import DEFAULT_LIMITS, Limits, Sandbox

# Reads the word that says all tests passed before anything of the program runs: a program that ends early, or prints
# what a test runner would, has not passed.
RUNNER = '''\
import importlib
import sys


def run():
    word = sys.stdin.readline().strip()
    say = sys.stdout.write
    sys.path.insert(0, "")
    module = importlib.import_module("checks")
    for name, test in list(vars(module).items()):
        if name.startswith("test_") and callable(test) and getattr(test, "__module__", None) == "checks":
            test()
    say("\\n" + word)
    sys.stdout.flush()


run()
'''


@dataclass(frozen=True)
class TestRun:
    """Whether every test passed, and else the last line of why not."""

    __test__ = False

    passed: bool
    reason: str = ""


def run_tests(sandbox: Sandbox, program: str, tests: str, limits: Limits = DEFAULT_LIMITS) -> TestRun:
    """Runs `tests`, a module that imports the program as `solution`."""
    word = secrets.token_hex(16)
    files = {"solution.py": program, "checks.py": tests, "runner.py": RUNNER}
    outcome = sandbox.run_python(files, "runner.py", stdin=word + "\n", limits=limits)
    if outcome.timed_out:
        return TestRun(False, f"took more than {limits.wall_seconds:g} s")
    if outcome.exit_code == 0 and outcome.stdout.rsplit("\n", 1)[-1] == word:
        return TestRun(True)
    if outcome.exit_code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return TestRun(False, f"took more than {limits.cpu_seconds} s of processor time")
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    return TestRun(False, lines[-1][:300] if lines else f"ended early with status {outcome.exit_code}")


def tests_of_problem(tests: str) -> str:
    """HumanEval's tests, which stand behind the program, as a module that imports it."""
    return "from solution import *\n\n" + tests
