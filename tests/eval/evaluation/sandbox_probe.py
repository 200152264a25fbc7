"""Tries, inside the sandbox, what programs must not do, and prints what succeeded as JSON."""
import json
import os
import signal
import socket
import sys

outside, port = json.load(sys.stdin)
FORKS = 24
FOLDER_BYTES = 12 << 20


def tries(action):
    """Whether `action` raised nothing."""
    try:
        action()
    except (OSError, MemoryError):
        return False
    return True


def append(path):
    with open(path, "a", encoding="utf-8") as file:
        file.write("changed")


def fill():
    for part in range(3):
        with open(f"filler{part}", "wb") as file:
            file.write(bytes(FOLDER_BYTES // 3))
            file.flush()


def fork_all():
    """How many children could be started; they wait for their end together."""
    children = []
    for _ in range(FORKS):
        try:
            child = os.fork()
        except OSError:
            break
        if child == 0:
            signal.pause()
            os._exit(0)
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(children)


print(json.dumps({
    "connected": tries(lambda: socket.create_connection(("127.0.0.1", int(port)), timeout=2)),
    "written": tries(lambda: append(os.path.join(outside, "new"))) or tries(lambda: append(os.path.join(outside, "secret"))),
    "read": tries(lambda: os.close(os.open(os.path.join(outside, "secret"), os.O_RDONLY))),
    "processes": fork_all(),
    "memory_refused": not tries(lambda: bytearray(600 << 20)),
    "folder_refused": not tries(fill),
}))
