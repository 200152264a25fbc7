"""Varies vulnerability-fix pairs without changing what they do, so that 300 pairs teach patterns, not names.

Two rewrites, seeded and applied to a function before and after its fix alike: renaming (parameters, locals,
tables and columns, from word lists) and slicing (statements that neither touch the changed lines or a sink nor
feed them are dropped). A mask travels with the text and marks the characters that the fix added.
"""
import ast
import builtins
import json
import keyword
import random
import re
import textwrap
import warnings

from words import COLUMNS, NOUNS, VERBS, SYNONYMS

PYTHON_WEAKNESSES = ("cwe-022", "cwe-078", "cwe-079", "cwe-089")
SINK = re.compile(r"\.(execute|executemany|query|raw)\(|subprocess|os\.system|popen|Popen|check_output|check_call|open\(|send_file")
STRING = re.compile(r'("""|\'\'\'|"|\')(.*?)(?<!\\)\1', re.S)
SQL_STATEMENT = re.compile(r"\b(select|insert|update|delete|replace)\s", re.I)
TABLE = re.compile(r"\b(?:from|into|update|join|table)\s+[`\"]?([A-Za-z_]\w*)", re.I)
SQL_WORDS = set("""select from where insert into values update set delete and or not null is in like order by group having
limit offset join left right inner outer on as distinct count max min sum avg asc desc create table primary key integer
int text varchar char default unique foreign references exists if drop alter add column case when then else end union all
between replace ignore duplicate returning using natural date time timestamp now true false index view real blob format""".split())
WORD = re.compile(r"[A-Za-z_]\w*")


class Passage:
    """Source text with one mark per character: 1 where the fix changed it."""

    def __init__(self, text, mask=None):
        self.text = text
        self.mask = bytearray(len(text)) if mask is None else mask
        assert len(self.text) == len(self.mask)

    @classmethod
    def of_change(cls, text, changes):
        passage = cls(text)
        for change in changes:
            for position in range(change["char_start"], min(change["char_end"], len(text))):
                passage.mask[position] = 1
        return passage._tidy()

    def lines(self):
        start = 0
        for line in self.text.split("\n"):
            yield line, self.mask[start:start + len(line)], bytes(self.mask[start + len(line):start + len(line) + 1]) or b"\0"
            start += len(line) + 1

    @classmethod
    def of_lines(cls, rows):
        text, mask = "\n".join(line for line, _, _ in rows), bytearray()
        for number, (_, marks, newline) in enumerate(rows):
            mask += marks + (newline if number + 1 < len(rows) else b"")
        return cls(text, mask)

    def _tidy(self):
        """Tabs to four spaces, common indentation and trailing blanks away."""
        rows = []
        for line, marks, newline in self.lines():
            if "\t" in line:
                marks = bytearray(m for c, m in zip(line, marks) for _ in range(4 if c == "\t" else 1))
                line = line.replace("\t", "    ")
            length = len(line.rstrip())
            rows.append((line[:length], marks[:length], newline))
        margin = min((len(line) - len(line.lstrip()) for line, _, _ in rows if line), default=0)
        rows = [(line[margin:], marks[margin:], newline) for line, marks, newline in rows]
        while rows and not rows[-1][0]:
            rows.pop()
        return Passage.of_lines(rows)

    def renamed(self, mapping):
        """Replaces whole words; a method keeps its name, since its class is not here to be renamed with it."""
        text, mask, end = [], bytearray(), 0
        for match in WORD.finditer(self.text):
            new = mapping.get(match.group())
            is_method = self.text[match.start() - 1:match.start()] == "." and self.text[match.end():match.end() + 1] == "("
            if new is None or is_method:
                continue
            text += [self.text[end:match.start()], new]
            mask += self.mask[end:match.start()]
            mask += bytes([max(self.mask[match.start():match.end()])]) * len(new)
            end = match.end()
        text.append(self.text[end:])
        mask += self.mask[end:]
        return Passage("".join(text), mask)

    def sliced(self):
        """Drops what the sink and the changed lines do not need; the passage itself where that cannot be told."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(self.text)
        except (SyntaxError, ValueError):
            return self
        if len(tree.body) != 1 or not isinstance(tree.body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
            return self
        rows = list(self.lines())
        needed_lines = {n for n, (line, marks, _) in enumerate(rows, 1) if any(marks) or SINK.search(line)}
        drop = set()
        _slice_block(tree.body[0].body, needed_lines, set(), drop)
        kept = [row for number, row in enumerate(rows, 1) if number not in drop and row[0].strip()]
        sliced = Passage.of_lines(kept)
        try:
            ast.parse(sliced.text)
        except SyntaxError:
            return self
        return sliced

    def prefixed(self, text):
        return Passage(text + self.text, bytearray(len(text)) + self.mask)


def _loads(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _stores(node):
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | {n.value.id for n in ast.walk(node)
                    if isinstance(n, (ast.Subscript, ast.Attribute)) and isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name)}


def _slice_block(block, needed_lines, needed_names, drop):
    """Backward pass over `block`; returns whether anything in it is kept. `drop` gathers line numbers."""
    kept = False
    for position, statement in reversed(list(enumerate(block))):
        span = set(range(statement.lineno, statement.end_lineno + 1))
        inner = [getattr(statement, name) for name in ("body", "orelse", "finalbody") if getattr(statement, name, None)]
        inner += [handler.body for handler in getattr(statement, "handlers", [])]
        is_tail = isinstance(statement, ast.Return) and position == len(block) - 1
        wanted = bool(span & needed_lines) or bool(_stores(statement) & needed_names) or is_tail
        if not wanted:
            drop |= span
            continue
        kept = True
        if inner and isinstance(statement, (ast.If, ast.For, ast.While, ast.With, ast.Try)):
            for part in inner:
                lost = set()
                if _slice_block(part, needed_lines, needed_names, lost):
                    drop |= lost
            for field in ("test", "iter", "items"):
                value = getattr(statement, field, None)
                for node in value if isinstance(value, list) else [value]:
                    if node is not None:
                        needed_names |= _loads(node)
        else:
            needed_names |= _loads(statement)
    return kept


def read_pairs(folder, weaknesses=PYTHON_WEAKNESSES):
    """Returns [(weakness, before, after)] for the Python pairs in `folder`, passages marked with their changes."""
    pairs = []
    for weakness in weaknesses:
        for line in (folder / f"{weakness}.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["file_name"].endswith(".py"):
                pairs.append((weakness, Passage.of_change(row["func_src_before"], row["char_changes"]["deleted"]),
                              Passage.of_change(row["func_src_after"], row["char_changes"]["added"])))
    return pairs


def _names(text):
    """The function's name, and the parameters and locals that may be renamed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        head = re.search(r"def\s+(\w+)\s*\(([^)]*)\)", text)
        return (head.group(1), set(re.findall(r"\b([A-Za-z_]\w*)\s*(?:,|=|$)", head.group(2)))) if head else (None, set())
    locals_, name = set(), None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = name or node.name
            locals_ |= {a.arg for a in node.args.args + node.args.kwonlyargs}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            locals_.add(node.id)
    return name, locals_


def renaming(texts, rng):
    """Draws one mapping of words for all of `texts`, which are versions of the same function."""
    whole = "\n".join(texts)
    present = set(WORD.findall(whole))
    function, locals_ = None, set()
    tables, columns = set(), set()
    for text in texts:
        name, found = _names(text)
        function = function or name
        locals_ |= found
        for match in STRING.finditer(text):
            if SQL_STATEMENT.search(match.group(2)):
                tables |= set(TABLE.findall(match.group(2)))
                columns |= set(re.findall(r"(?<![%{:\w])[A-Za-z_]\w{2,}", match.group(2)))
    fixed = set(keyword.kwlist) | set(dir(builtins)) | SQL_WORDS | {"self", "cls", "request", "args", "kwargs", "os"}
    tables = {t for t in tables if t.lower() not in SQL_WORDS and t not in fixed}
    columns = {c for c in columns if c.lower() not in SQL_WORDS and c not in fixed} - tables
    locals_ = {n for n in locals_ if n not in fixed} - tables - columns
    mapping = {}

    def assign(old, new):
        if new not in present and new not in mapping.values() and new not in fixed:
            mapping[old] = new

    nouns, spare = rng.sample(NOUNS, len(NOUNS)), rng.sample(COLUMNS, len(COLUMNS))
    main = nouns[0]
    for table in sorted(tables):
        noun = nouns.pop(0)
        assign(table, rng.choice([noun, noun + "s", noun + "s"]))
    for column in sorted(columns):
        if rng.random() < 0.8 and spare:
            assign(column, spare.pop() if rng.random() < 0.8 else f"{rng.choice(nouns)}_{rng.choice(['id', 'name', 'type'])}")
    for local in sorted(locals_):
        group = next((g for g in SYNONYMS if local in g), None)
        if group:
            assign(local, rng.choice(group))
        elif rng.random() < 0.7 and spare:
            assign(local, rng.choice([spare[-1], spare[-1], f"{main}_id", f"new_{spare[-1]}", f"{main}_{spare[-1]}"]))
            spare.pop()
    if function and not function.startswith("__") and SQL_STATEMENT.search(whole) and rng.random() < 0.8:
        verb = rng.choice(VERBS[SQL_STATEMENT.search(whole).group(1).lower()])
        column = rng.choice([f"_by_{rng.choice(list(mapping.values()) or ['id'])}", "", "", "s"])
        assign(function, rng.choice([f"{verb}_{main}{column}", f"{verb}{main.title()}"]))
    return mapping


def imports_for(texts, rng):
    """An import block that fits both versions, as the head of a small file would have it."""
    whole = "\n".join(texts)
    modules = [m for m in ("os", "subprocess", "sqlite3", "psycopg2", "MySQLdb", "pymysql", "json", "shlex", "re")
               if re.search(rf"\b{m}\.", whole)]
    if SINK.search(whole) and SQL_STATEMENT.search(whole) and not set(modules) & {"sqlite3", "psycopg2", "MySQLdb", "pymysql"}:
        modules.append("sqlite3" if re.search(r"\?[ ,)\"'\n;]", texts[-1]) else rng.choice(["MySQLdb", "psycopg2", "pymysql"]))
    return "".join(f"import {m}\n" for m in sorted(modules)) + "\n\n" if modules else ""


def variant(before, after, rng, longest_chars, sliced_share=0.6):
    """Returns both versions rewritten alike; None where even the slice is longer than `longest_chars`."""
    if rng.random() < sliced_share or len(after.text) > longest_chars:
        before, after = before.sliced(), after.sliced()
    if max(len(before.text), len(after.text)) > longest_chars:
        return None
    if rng.random() < 0.85:
        mapping = renaming([before.text, after.text], rng)
        before, after = before.renamed(mapping), after.renamed(mapping)
    if rng.random() < 0.35:
        head = imports_for([before.text, after.text], rng)
        before, after = before.prefixed(head), after.prefixed(head)
    return before, after


def renamed_function(source, rng):
    """One corpus function with fresh names."""
    return Passage(source).renamed(renaming([source], rng)).text


def sliced_function(source):
    """One corpus function without what its sinks do not need."""
    return Passage(source).sliced().text


def without_comments(source):
    return "\n".join(line for line in source.split("\n") if not line.lstrip().startswith("#"))
