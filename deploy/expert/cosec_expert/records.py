"""Reads fix pairs: SVEN's JSONL and our own schema, told apart record by record.

A bad record is counted, named by file and line, and skipped. Our own schema:

    before, after   the vulnerable and the fixed code; required
    id              default: file name and line
    weakness        such as CWE-089; default CWE-000
    language        default python
    group           pairs of one origin, never split between training and held-out; default: the id
    split           train or val; default: val in a folder or file of that name, else by `--held-out-share`
    task            what a user would ask for; default: a request to complete the code
    changed         {"before": [[start, end], ...], "after": [...]}, in characters; default: by difflib
    licence, source for the model card
"""

import difflib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

LONGEST_CHARACTERS = 100_000
LEXEMES = re.compile(r"\w+|\s+|[^\w\s]")
LANGUAGES = {
    "py": "python",
    "c": "c",
    "h": "c",
    "cc": "c++",
    "cpp": "c++",
    "cxx": "c++",
    "hpp": "c++",
    "hh": "c++",
    "js": "javascript",
    "ts": "typescript",
    "java": "java",
    "go": "go",
    "rb": "ruby",
    "php": "php",
    "rs": "rust",
}


class BadRecord(Exception):
    """Why a record cannot be used."""


@dataclass(frozen=True)
class Pair:
    id: str
    weakness: str
    language: str
    group: str
    split: str | None
    task: str | None
    before: str
    after: str
    changed_before: tuple
    changed_after: tuple
    licence: str
    source: str

    def reversed(self):
        """The pair of an anti-expert: what is vulnerable is what is learnt."""
        return replace(
            self,
            before=self.after,
            after=self.before,
            changed_before=self.changed_after,
            changed_after=self.changed_before,
        )


@dataclass
class Reading:
    """What the files held."""

    pairs: list = field(default_factory=list)
    skipped: list = field(default_factory=list)
    """(place, why) of each bad record."""


def changed_spans(before, after):
    """Character spans of `before` and of `after` that the other does not have, by words, blanks and marks."""
    sides = [[(m[0], m.start(), m.end()) for m in LEXEMES.finditer(text)] for text in (before, after)]
    matcher = difflib.SequenceMatcher(
        None, [lexeme for lexeme, _, _ in sides[0]], [lexeme for lexeme, _, _ in sides[1]], autojunk=False
    )
    spans = ([], [])
    for operation, *bounds in matcher.get_opcodes():
        if operation == "equal":
            continue
        for side, (first, last) in enumerate((bounds[:2], bounds[2:])):
            if first < last:
                spans[side].append((sides[side][first][1], sides[side][last - 1][2]))
    return tuple(spans[0]), tuple(spans[1])


def weakness_name(text):
    """CWE-089 for cwe-89, CWE_089 and the like; any other name as it is."""
    match = re.fullmatch(r"cwe[-_ ]?(\d+)", text.strip(), re.IGNORECASE)
    return f"CWE-{int(match[1]):03}" if match else text.strip()


def _text(record, name, default=None):
    value = record.get(name, default)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRecord(f"{name} is {type(value).__name__}, expected text")
    return value


def _code(record, name):
    code = _text(record, name)
    if not code or not code.strip():
        raise BadRecord(f"{name} is missing or empty")
    if len(code) > LONGEST_CHARACTERS:
        raise BadRecord(f"{name} has {len(code)} characters, at most {LONGEST_CHARACTERS} are allowed")
    return code


def _spans(found, name, code):
    if not isinstance(found, list):
        raise BadRecord(f"{name} is no list of spans")
    spans = []
    for span in found:
        if not (
            isinstance(span, list)
            and len(span) == 2
            and all(type(n) is int for n in span)
            and 0 <= span[0] <= span[1] <= len(code)
        ):
            raise BadRecord(f"{name} has {span!r}, expected [start, end] within {len(code)} characters")
        spans.append(tuple(span))
    return tuple(spans)


def _own(record, place):
    before, after = _code(record, "before"), _code(record, "after")
    changed = record.get("changed")
    if changed is None:
        spans = changed_spans(before, after)
    elif isinstance(changed, dict):
        spans = (
            _spans(changed.get("before", []), "changed.before", before),
            _spans(changed.get("after", []), "changed.after", after),
        )
    else:
        raise BadRecord("changed is no object")
    split = _text(record, "split")
    if split not in (None, "train", "val"):
        raise BadRecord(f"split is {split!r}, expected train or val")
    ident = _text(record, "id", place)
    return Pair(
        ident,
        weakness_name(_text(record, "weakness", "CWE-000")),
        _text(record, "language", "python").lower(),
        _text(record, "group", ident),
        split,
        _text(record, "task"),
        before,
        after,
        *spans,
        _text(record, "licence", "not stated"),
        _text(record, "source", place.rpartition(":")[0]),
    )


def _sven(record, place):
    before, after = _code(record, "func_src_before"), _code(record, "func_src_after")
    changes = record.get("char_changes")
    if not isinstance(changes, dict):
        raise BadRecord("char_changes is no object")
    spans = []
    for side, code in (("deleted", before), ("added", after)):
        try:
            listed = [[change["char_start"], change["char_end"]] for change in changes.get(side, [])]
        except (TypeError, KeyError) as error:
            raise BadRecord(f"char_changes.{side} is not as SVEN has it") from error
        spans.append(_spans(listed, f"char_changes.{side}", code))
    extension = _text(record, "file_name", "").rpartition(".")[2].lower()
    link = _text(record, "commit_link", place)
    return Pair(
        place,
        weakness_name(_text(record, "vul_type", "CWE-000")),
        LANGUAGES.get(extension, extension or "unknown"),
        link,
        None,
        None,
        before,
        after,
        *spans,
        "MIT (SVEN; functions from public repositories)",
        "SVEN",
    )


def _files(source):
    if source.is_dir():
        return sorted(source.rglob("*.jsonl"))
    return [source]


def parse(line, place):
    """The pair of one line. Raises BadRecord."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadRecord(f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRecord(f"a JSON {type(record).__name__}, expected an object")
    pair = _sven(record, place) if "func_src_before" in record else _own(record, place)
    if pair.before == pair.after:
        raise BadRecord("both versions are the same")
    return pair


def read(sources):
    """All pairs of JSONL files and of folders with such files.

    Raises FileNotFoundError where there is no such file or folder, or a folder has none.
    """
    reading = Reading()
    for source in map(Path, sources):
        files = _files(source)
        if not files:
            raise FileNotFoundError(f"{source} has no .jsonl file")
        for file in files:
            folder_split = next(
                (part for part in (file.stem, *(p.name for p in file.parents)) if part in ("train", "val")), None
            )
            with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    place = f"{file}:{number}"
                    try:
                        pair = parse(line.encode("utf-8", "surrogateescape").decode("utf-8"), place)
                    except BadRecord as error:
                        reading.skipped.append((place, str(error)))
                    except UnicodeDecodeError:
                        reading.skipped.append((place, "not UTF-8"))
                    else:
                        reading.pairs.append(pair if pair.split else replace(pair, split=folder_split))
    return reading
