"""Makes a program of a prompt and of what a model answered."""
import ast
import re
import warnings
from collections.abc import Sequence

FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.M | re.S)
C_COMMENT_OR_LITERAL = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.S)


def parse_python(source: str) -> ast.Module | None:
    """The syntax tree of `source`, or nothing where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`, for servers that do not know them."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def fenced_code(answer: str) -> str:
    """The code of a chat's answer: its longest fenced block, or all of it where it has none.

    A block that the answer's end cut off counts: whether it parses is for others to say.
    """
    blocks = [match.group(2) for match in FENCE.finditer(answer)]
    return max(blocks, key=len) if blocks else answer


def complete_function(prompt: str, text: str, *, cut_off: bool) -> str:
    """The function that `prompt` begins, with its body from `text`, which ends with the first line that leaves it.

    `cut_off`: the text ended because it was long enough; its unfinished last statement is left away.
    """
    lines = text.split("\n")
    kept = [lines[0]]
    for line in lines[1:]:
        if line and not line[0].isspace() and line[0] not in "#)]}\"'":
            break
        kept.append(line)
    else:
        while cut_off and len(kept) > 1 and parse_python(prompt + "\n".join(kept)) is None:
            kept.pop()
    return (prompt + "\n".join(kept)).rstrip() + "\n"


def complete_c_function(prompt: str, text: str) -> str:
    """The C function that `prompt` leaves open, ended by the brace in `text` that closes it."""
    whole = prompt + text
    code = C_COMMENT_OR_LITERAL.sub(lambda match: " " * len(match.group()), whole)
    depth = code[: len(prompt)].count("{") - code[: len(prompt)].count("}")
    for at in range(len(prompt), len(code)):
        depth += {"{": 1, "}": -1}.get(code[at], 0)
        if depth == 0 and code[at] == "}":
            return whole[: at + 1] + "\n"
    return whole


def without_c_comments(source: str) -> str:
    """`source` with its comments and its literals blanked."""
    return C_COMMENT_OR_LITERAL.sub(lambda match: " " * len(match.group()), source)


def _signature(prompt: str, language: str) -> str | None:
    """The line of `prompt` that opens the function which is asked for."""
    pattern = r"^(?:async )?(?:def|class) \w+" if language == "py" else r"^\w[\w\s*]*\b\w+\s*\([^;]*$"
    found = re.findall(pattern, prompt, re.M)
    return found[-1].strip() if found else None


def program_of_answer(context: str, prompt: str, answer: str, language: str) -> str:
    """The program of a chat's answer: a whole file, a function to go behind `context`, or the rest of `prompt`."""
    code = fenced_code(answer)
    signature = _signature(prompt, language)
    # Without its parameters: an answer may annotate or rename those.
    name = re.search(r"(\w+)\s*(?:\(|$)", signature) if signature else None
    opening = r"(?:def|class)\s+" if language == "py" else r"^\w[\w\s*]*\b"
    if name is None or not re.search(rf"{opening}{name.group(1)}\s*[(:]", code, re.M):
        return context + prompt + ("" if code.startswith((" ", "\n")) else "\n") + code.rstrip() + "\n"
    return with_missing_lines(context, code)


def with_missing_lines(context: str, code: str) -> str:
    """`code` behind `context`, which it stays without where it brings all of the context's names itself."""
    tree, own = parse_python(context), parse_python(code)
    if tree is None or own is None:
        return code if "#include" in code else context + code
    missing = _names(tree) - _names(own)
    return (context.rstrip() + "\n\n\n" if missing else "") + code.rstrip() + "\n"


def _names(tree: ast.Module) -> set[str]:
    """The names that a module's own statements bind."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names
