"""Programs that try to get out."""
import os
import sys
import time
from pathlib import Path

import pytest

from evaluation.errors import UsageError
from evaluation.execution import run_tests
from evaluation.sandbox import Limits, Protections, Sandbox


def run(sandbox, text, **limits):
    return sandbox.run_python({"main.py": text}, "main.py", limits=Limits(**limits))


def test_every_protection_is_there(sandbox):
    assert sandbox.protections == Protections(True, True, True, True, True, True)


def test_a_program_runs_in_a_folder_of_its_own(sandbox):
    outcome = sandbox.run_python({"main.py": "print(open('data.txt').read(), input())", "data.txt": "here"}, "main.py", stdin="there\n")
    assert (outcome.exit_code, outcome.stdout) == (0, "here there\n"), outcome.stderr


def test_no_network(sandbox):
    outcome = run(sandbox, """
import socket
tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
for kind, address in ((tcp, ("127.0.0.1", 22)), (tcp, ("192.0.2.1", 80)), (udp, ("192.0.2.1", 53))):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(2)
    try:
        s.connect(address)
        s.send(b"x")
        print("reached", address)
    except OSError:
        pass
""")
    assert (outcome.exit_code, outcome.stdout) == (0, ""), outcome


def test_files_outside_are_neither_read_nor_written(sandbox, tmp_path):
    tmp_path.chmod(0o777)
    secret = tmp_path / "secret"
    secret.write_text("readable by all")
    outcome = run(sandbox, f"""
import os
found = []
for path, mode in (({str(secret)!r}, "r"), ({str(secret)!r}, "a"), ({str(tmp_path / "new")!r}, "w"),
                   ("/etc/shadow", "r"), ("/etc/passwd", "r"), ("/tmp/new", "w"),
                   ("/dev/shm/new", "w"), ("/proc/sysrq-trigger", "w"), ({os.path.expanduser("~/x")!r}, "w"),
                   ({str(Path(__file__))!r}, "r")):
    try:
        open(path, mode).close()
        found.append(path)
    except OSError:
        pass
for call in (lambda: os.listdir("/root"), lambda: os.listdir("/home"), lambda: os.chroot("/"), lambda: os.setuid(0) or os.listdir("/root"),
             lambda: os.symlink("/etc/passwd", "link") or open("link").read()):
    try:
        found.append(call())
    except OSError:
        pass
print(found)
""")
    assert outcome.stdout == "[]\n", outcome
    assert secret.read_text() == "readable by all" and os.listdir(tmp_path) == ["secret"]


def test_a_fork_bomb_is_bounded_and_leaves_nothing(sandbox):
    outcome = run(sandbox, "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n", wall_seconds=2)
    assert outcome.timed_out
    mark = "cosec-eval-fork-bomb"
    outcome = run(sandbox, f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', '{mark}'], "
                           "start_new_session=True)\nprint('left')\n")
    assert outcome.stdout == "left\n", outcome
    deadline = time.monotonic() + 30
    while (left := [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _read(path):
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_memory_files_output_and_time_are_bounded(sandbox):
    assert "MemoryError" in run(sandbox, "x = bytearray(2 << 30)").stderr
    assert run(sandbox, "open('big', 'wb').write(bytes(100 << 20))").exit_code != 0
    many = run(sandbox, "for i in range(10000):\n    open(f'f{i}', 'w').write('x')\n")
    assert many.exit_code != 0 and "OSError" in many.stderr
    assert len(run(sandbox, "print('x' * (10 << 20))").stdout) <= 256 << 10
    assert run(sandbox, "while True: pass", wall_seconds=1).timed_out


def test_the_environment_is_scrubbed(sandbox, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    outcome = run(sandbox, "import os, sys\nprint(sorted(os.environ), '/nowhere' in sys.path)")
    assert "KEY" not in outcome.stdout and "False" in outcome.stdout


def test_no_privilege_is_left(sandbox):
    kinds = ("CapEff", "CapPrm", "CapBnd")
    outcome = run(sandbox, f"print([line.split()[1] for line in open('/proc/self/status') if line.startswith({kinds})])")
    assert outcome.stdout.strip() == str(["0" * 16] * 3), outcome


def test_without_namespaces_nothing_runs_unless_told():
    weak = Sandbox(namespaces=False)
    assert "bounded_folder" in weak.protections.missing()
    with pytest.raises(UsageError, match="--unsandboxed"):
        weak.check()
    Sandbox(namespaces=False, unsandboxed=True).check()
    assert weak.run_python({"main.py": "print(1)"}, "main.py").stdout == "1\n"


@pytest.mark.parametrize("program", [
    "import sys\nsys.exit(0)\n", "import os\nos._exit(0)\n", "print('passed')\nraise SystemExit\n", "def f():\n    return 2\n",
    "def f(:\n", "",
])
def test_only_a_program_that_passes_its_tests_passes(sandbox, program):
    tests = "import solution\n\ndef test_f():\n    assert solution.f() == 1\n"
    assert run_tests(sandbox, "def f():\n    return 1\n", tests).passed
    assert not run_tests(sandbox, program, tests).passed


def test_the_interpreter_is_this_one(sandbox):
    assert run(sandbox, "import sys, yaml\nprint(sys.prefix)").stdout.strip() == sys.prefix
