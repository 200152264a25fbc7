"""Ordinary code, on which the adapter is to change nothing: functions with docstrings, and where in them that is
measured.
"""

import ast
import hashlib
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "ensurepip",
    "__pycache__",
    "pydoc_data",
}
SHORTEST_LINES, LONGEST_LINES = 5, 45
LARGEST_FILE = 300_000


@dataclass(frozen=True)
class Snippet:
    """A function: its text, what a user would ask for to get it, and where its body begins (in characters)."""

    source: str
    id: str
    task: str
    code: str
    body: int


def _snippet(source, file, source_lines, function):
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)]) - 1
    code = textwrap.dedent("\n".join(source_lines[first : function.end_lineno])) + "\n"
    statement = function.body[0]
    if statement.end_lineno == function.end_lineno:
        return None
    documentation = ast.get_docstring(function) or ""
    summary = documentation.strip().split("\n\n")[0].replace("\n", " ").rstrip(".")[:200]
    if not SHORTEST_LINES <= code.count("\n") <= LONGEST_LINES or not summary:
        return None
    try:
        ast.parse(code)
    except SyntaxError:
        return None
    kept = code.split("\n")[: statement.end_lineno - first]
    return Snippet(
        source,
        f"{file}:{first + 1}:{function.name}",
        f"Write a Python function `{function.name}`: {summary}.",
        code,
        len("\n".join(kept)) + 1,
    )


def functions(text, source, file):
    """The functions of a module that have a docstring and something behind it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
            found = _snippet(source, file, lines, node)
            if found:
                yield found


def usual_sources():
    """Our own snippets and the standard library of the Python that runs."""
    return [Path(__file__).resolve().parents[1] / "data" / "ordinary", Path(sysconfig.get_path("stdlib"))]


def read(sources):
    """Snippets of Python files and of folders with such files, in a fixed order."""
    found = {}
    for source in map(Path, sources):
        files = [source] if source.is_file() else sorted(source.rglob("*.py"))
        for file in files:
            inside = file.relative_to(source) if file != source else Path(file.name)
            if LEFT_OUT & set(inside.parts) or file.stat().st_size > LARGEST_FILE:
                continue
            text = file.read_text(encoding="utf-8", errors="replace")
            for snippet in functions(text, str(source), str(inside)):
                found.setdefault(hashlib.sha256(snippet.code.encode()).hexdigest(), snippet)
    return [found[key] for key in sorted(found)]
