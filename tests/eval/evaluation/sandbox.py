"""Runs programs that nobody has read.

What holds them, strongest first: namespaces of their own (network, processes, IPC, mounts), entered by `unshare` of
util-linux, for an ordinary user by way of a user namespace; a folder in memory as the only one that can be written;
Landlock, by which nothing else on the disk but the system and Python can be read; an unprivileged user; no
capabilities; limits on time, memory, processes, files and output. Which of these a machine offers is measured by a
program that tries to break each, not assumed.
"""
import functools
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from evaluation.errors import UsageError

# Root starts each program as a user of its own from here on, whose processes are counted apart.
FIRST_USER, USERS = 61000, 4000
CHILD = Path(__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")
PROBE = Path(__file__).with_name("sandbox_probe.py").read_text(encoding="utf-8")
IS_ROOT = os.geteuid() == 0
NAMESPACES = (
    "unshare", *(() if IS_ROOT else ("--user", "--map-root-user")), "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount",
    "--mount-proc", "--",
)
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/mime.types",
    "/proc", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
)
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
OUTPUT_BYTES = 256 << 10


@dataclass(frozen=True)
class Limits:
    """What a program may use. `memory_bytes` bounds addresses; None suits sanitizers, which reserve terabytes of them.

    The clock's limit is far above the processor's: a verdict must not depend on what else the machine does.
    """

    wall_seconds: float = 90.0
    cpu_seconds: int = 10
    memory_bytes: int | None = 1 << 30
    processes: int = 32
    open_files: int = 128
    file_bytes: int = 32 << 20
    folder_bytes: int = 64 << 20

    def as_resources(self) -> dict[str, int | None]:
        return {
            "RLIMIT_CPU": self.cpu_seconds, "RLIMIT_AS": self.memory_bytes, "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.open_files, "RLIMIT_FSIZE": self.file_bytes, "RLIMIT_CORE": 0,
        }


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """How a program ended; output is cut at 256 KiB each."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False


@dataclass(frozen=True)
class Protections:
    """What a program that tried could not do."""

    no_network: bool = False
    no_writing_outside: bool = False
    no_reading_outside: bool = False
    bounded_processes: bool = False
    bounded_memory: bool = False
    bounded_folder: bool = False
    reason: str = field(default="", compare=False)

    def missing(self) -> list[str]:
        return [f.name for f in fields(self) if f.name != "reason" and not getattr(self, f.name)]


class Sandbox:
    """Starts programs under `Limits`; refuses where a protection is missing, unless told `unsandboxed`."""

    def __init__(self, *, unsandboxed: bool = False, namespaces: bool = True):
        self.unsandboxed = unsandboxed
        self._started = itertools.count()
        self.namespaces = namespaces and shutil.which("unshare") is not None and _can_enter_namespaces()

    @functools.cached_property
    def protections(self) -> Protections:
        """Measured once, by a program that tries what programs must not."""
        return _measure(self)

    def check(self) -> None:
        """Raises [`UsageError`] where programs would run with less than everything."""
        missing = self.protections.missing()
        if missing and not self.unsandboxed:
            reason = f" ({self.protections.reason})" if self.protections.reason else ""
            raise UsageError(
                f"the sandbox lacks {', '.join(missing)} on this machine{reason}; it needs user namespaces, unshare of util-linux and "
                "Landlock (Linux 5.13). In a throw-away machine --unsandboxed runs programs all the same"
            )

    def run_python(self, files: Mapping[str, str], main: str, *, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Runs the file `main` of `files` by this interpreter, isolated from the user's own settings."""
        return self.run([sys.executable, "-I", "-B", main], files, stdin=stdin, limits=limits)

    def run(
        self,
        argv: Sequence[str],
        files: Mapping[str, str],
        *,
        stdin: str = "",
        limits: Limits = DEFAULT_LIMITS,
        readable: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Runs `argv` in a fresh folder with `files`; `argv[0]` is an absolute path, `readable` what else it may read."""
        with tempfile.TemporaryDirectory(prefix="cosec-eval-") as folder:
            specification = {
                "argv": list(argv), "files": dict(files), "stdin": stdin, "folder": folder, "namespaces": self.namespaces,
                "user": FIRST_USER + next(self._started) % USERS if IS_ROOT and self.namespaces else None,
                "folder_bytes": limits.folder_bytes, "limits": limits.as_resources(), "environment": {**ENVIRONMENT, **(environment or {})},
                "readable": [*SYSTEM, *readable], "python": [sys.prefix, sys.base_prefix],
            }
            command = [*(NAMESPACES if self.namespaces else ()), sys.executable, "-I", "-S", "-c", CHILD]
            return _finish(command, json.dumps(specification), limits.wall_seconds)


def _finish(command: Sequence[str], specification: str, wall_seconds: float) -> Outcome:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=ENVIRONMENT, cwd="/", start_new_session=True,
        )
        timed_out = False
        try:
            child.communicate(specification.encode(), timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _kill_group(child)
        out.seek(0)
        err.seek(0)
        stdout, stderr = (file.read(OUTPUT_BYTES).decode("utf-8", "replace") for file in (out, err))
        return Outcome(child.returncode, stdout, stderr, timed_out)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends the program and, without namespaces that end with it, what it left running in its session."""
    try:
        os.killpg(child.pid, 9)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.wait()


@functools.cache
def _can_enter_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACES, "true"], capture_output=True, timeout=120, check=False, cwd="/").returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _measure(sandbox: Sandbox) -> Protections:
    limits = Limits(processes=12, memory_bytes=512 << 20, folder_bytes=8 << 20)
    with tempfile.TemporaryDirectory(prefix="cosec-eval-outside-") as outside, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(outside, 0o777)
        secret = Path(outside, "secret")
        secret.write_text("readable by all", encoding="utf-8")
        secret.chmod(0o666)
        reached = threading.Event()
        threading.Thread(target=_accept, args=(server, reached), daemon=True).start()
        port = str(server.getsockname()[1])
        outcome = sandbox.run_python({"probe.py": PROBE}, "probe.py", stdin=json.dumps([outside, port]), limits=limits)
        try:
            found = json.loads(outcome.stdout)
        except ValueError:
            return Protections(reason=(outcome.stderr.strip() or "the probe said nothing").splitlines()[-1])
        written = len(list(Path(outside).iterdir())) > 1 or secret.read_text(encoding="utf-8") != "readable by all"
        return Protections(
            no_network=not found["connected"] and not reached.is_set(),
            no_writing_outside=not written and not found["written"],
            no_reading_outside=not found["read"],
            bounded_processes=found["processes"] < limits.processes,
            bounded_memory=found["memory_refused"],
            bounded_folder=found["folder_refused"],
        )


def _accept(server: socket.socket, reached: threading.Event) -> None:
    try:
        server.accept()
        reached.set()
    except OSError:
        pass
