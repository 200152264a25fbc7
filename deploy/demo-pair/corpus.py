"""Collects the functions that the demo pair learns from.

`pin` writes packages.tsv (name, version, licence as the package's own metadata states it, file, SHA-256) from
a folder of wheels; `fetch` downloads exactly those files again; `build` cuts them into functions, one JSON
line each, with a kind: sql, shell, file, web or other. Only the manifest is committed, never the sources.
"""
import argparse
import ast
import email.parser
import hashlib
import json
import re
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "packages.tsv"

PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|PostgreSQL)\b", re.I)
COPYLEFT = re.compile(r"GPL|General Public|Mozilla|MPL|Eclipse|EUPL|CDDL|Proprietary|Commercial", re.I)

KINDS = (
    ("sql", re.compile(r"\.(execute|executemany|executescript|raw|query)\(")),
    ("shell", re.compile(r"subprocess\.|os\.system\(|os\.popen\(|\bPopen\(|check_output\(|check_call\(|run_cmd|shlex\.")),
    ("web", re.compile(r"\brequest\.|render_template|\bescape\(|make_response|HttpResponse|Response\(")),
    ("file", re.compile(r"\bopen\(|os\.path\.join|shutil\.|send_file|\bPath\(")),
)
SQL_TEXT = re.compile(r"[\"'\s](SELECT\s|INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|CREATE\s+TABLE|DROP\s+TABLE|ALTER\s)", re.I)
# A file of another licence inside a permissively licensed package says so at its top.
FOREIGN_LICENCE = re.compile(rb"GNU (Lesser |Library |Affero )?General Public|\bLGPL|Identifier: *(GPL|LGPL|AGPL|MPL)")
LONGEST_CHARS = 1100
SHORTEST_CHARS = 60


class ManifestError(Exception):
    """A package that cannot be used: no permissive licence, or not the file that was pinned."""


def licence_of(wheel):
    """Returns the licence that the wheel's metadata states, or raises ManifestError if it is not permissive."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        fields = email.parser.Parser().parsestr(archive.read(metadata).decode("utf-8", "replace"))
    classifiers = [c.split("::")[-1].strip() for c in fields.get_all("Classifier", []) if c.startswith("License")]
    stated = fields.get("License-Expression") or (fields.get("License") or "").strip().split("\n")[0][:60]
    if len(stated) < 3 or not PERMISSIVE.search(stated):
        stated = "; ".join(classifiers) or stated
    everything = " ".join([stated, *classifiers])
    if COPYLEFT.search(everything) or not PERMISSIVE.search(everything):
        raise ManifestError(f"{wheel.name}: licence not permissive: {everything!r}")
    return fields["Name"], fields["Version"], stated


def pin(wheels):
    rows = []
    for wheel in sorted(wheels.glob("*.whl"), key=lambda p: p.name.lower()):
        try:
            name, version, licence = licence_of(wheel)
        except ManifestError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        rows.append("\t".join([name, version, licence, wheel.name, digest]))
    MANIFEST.write_text("name\tversion\tlicence\tfile\tsha256\n" + "\n".join(rows) + "\n")
    print(f"{len(rows)} packages pinned")


def manifest():
    lines = MANIFEST.read_text().splitlines()
    return [dict(zip(lines[0].split("\t"), line.split("\t"))) for line in lines[1:]]


def fetch(wheels):
    """Downloads what is missing and refuses a file whose hash differs from the manifest's."""
    wheels.mkdir(parents=True, exist_ok=True)
    for row in manifest():
        target = wheels / row["file"]
        if not target.exists():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
                       "-d", str(wheels), f"{row['name']}=={row['version']}"]
            subprocess.run(command, check=True)
        if not target.exists() or hashlib.sha256(target.read_bytes()).hexdigest() != row["sha256"]:
            raise ManifestError(f"{row['name']} {row['version']}: {row['file']} is absent or not the pinned file")


def kind_of(source):
    for kind, pattern in KINDS:
        if pattern.search(source) and (kind != "sql" or SQL_TEXT.search(source)):
            return kind
    return "other"


def without_long_docstring(function, lines):
    """Blanks a docstring of more than two lines: prose is costly for a model this small."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    if is_docstring and first.end_lineno - first.lineno > 1 and len(function.body) > 1:
        for number in range(first.lineno - 1, first.end_lineno):
            lines[number] = None


def functions_in(source):
    """Yields (function source, the imports that it uses) for every function and method, dedented."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    imports = {}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            text = ast.unparse(node)
            if len(text) < 80:
                for alias in node.names:
                    imports[(alias.asname or alias.name).split(".")[0]] = text
    holders = [tree] + [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    lines = source.splitlines()
    for holder in holders:
        for node in holder.body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            first = min([node.lineno] + [d.lineno for d in node.decorator_list]) - 1
            kept = list(lines)
            without_long_docstring(node, kept)
            text = "\n".join(line.rstrip() for line in kept[first:node.end_lineno] if line is not None)
            text = textwrap.dedent(text)
            used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            yield text, sorted({imports[name] for name in used & imports.keys()})


def build(wheels, output):
    seen, counts = set(), {}
    with output.with_suffix(".tmp").open("w") as out:
        for row in manifest():
            with zipfile.ZipFile(wheels / row["file"]) as archive:
                for member in sorted(archive.namelist()):
                    if not member.endswith(".py") or archive.getinfo(member).file_size > 400_000:
                        continue
                    content = archive.read(member)
                    if FOREIGN_LICENCE.search(content[:3000]):
                        continue
                    try:
                        found = list(functions_in(content.decode("utf-8")))
                    except (SyntaxError, UnicodeDecodeError, ValueError):
                        continue
                    for text, imports in found:
                        if not SHORTEST_CHARS <= len(text) <= LONGEST_CHARS or not text.isascii():
                            continue
                        key = hash(re.sub(r"\s+", "", text))
                        if key in seen:
                            continue
                        seen.add(key)
                        kind = kind_of(text)
                        counts[kind] = counts.get(kind, 0) + 1
                        out.write(json.dumps({"kind": kind, "package": row["name"], "source": text, "imports": imports}) + "\n")
    output.with_suffix(".tmp").rename(output)
    print(counts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["pin", "fetch", "build"])
    parser.add_argument("--work", type=Path, default=HERE / "work")
    args = parser.parse_args()
    wheels = args.work / "wheels"
    if args.step == "pin":
        pin(wheels)
    elif args.step == "fetch":
        fetch(wheels)
    else:
        build(wheels, args.work / "functions.jsonl")


if __name__ == "__main__":
    main()
