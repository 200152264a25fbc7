"""Checkpoints of a run, from which it goes on with the same order of data.

A checkpoint holds the adapter, the optimiser's state, what early stopping remembers, and the settings; no base
weights.
"""

import json
import os
import re
from pathlib import Path

import torch

KEPT = 2


class OtherSettings(Exception):
    """A run in this folder was begun with other settings."""


def _numbered(folder):
    found = [
        (int(match[1]), path)
        for path in folder.glob("step-*.pt")
        if (match := re.fullmatch(r"step-(\d+)\.pt", path.name))
    ]
    return [path for _, path in sorted(found)]


def _replace(path, write):
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


def save(folder, step, state):
    """Writes a whole checkpoint or none, and forgets all but the newest few."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"step-{step:06}.pt", lambda part: torch.save(state | {"step": step}, part))
    for old in _numbered(folder)[:-KEPT]:
        old.unlink()


def newest(folder, settings):
    """The newest checkpoint, None where there is none.

    Raises OtherSettings, naming the first that differs, where one cannot go on from it.
    """
    found = _numbered(Path(folder))
    if not found:
        return None
    state = torch.load(found[-1], map_location="cpu", weights_only=True)
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            raise OtherSettings(
                f"{found[-1]} was made with {name} {state['settings'].get(name)!r}, not {value!r}: give that, or another --out"
            )
    return state


def append_line(path, record):
    """Adds one JSON object to a log of lines."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def lines(path):
    """The log's records; none where there is no log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def cut_log(path, step):
    """Drops what a run that was cut off had logged beyond its checkpoint."""
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in lines(path) if record["step"] <= step]
        _replace(path, lambda part: part.write_text("".join(kept), encoding="utf-8"))
