"""Judges of values that become part of something that is read: queries, commands, pages, paths, code, filters, log
lines.
"""

import ast
import re

from .syntax import (
    assignments,
    attributes,
    called,
    calls,
    dotted,
    is_settled,
    keyword,
    keyword_is,
    last_name,
    memberships,
    names,
    parts,
    texts,
)


def sql(tree):
    """A query that is not constant text, whatever way it took through variables."""
    given = assignments(tree)
    sinks = called(tree, "execute", "executescript", "fetch", "raw", "text")
    return any(not is_settled(call.args[0], given, {"text"}) for call in sinks if call.args)


def command(tree):
    """A shell reads something that is not constant, or a remote shell does."""
    given = assignments(tree)
    if any(keyword_is(call, "shell", True) for call in calls(tree)):
        return True
    if called(tree, "system", "popen", "getoutput", "create_subprocess_shell"):
        return True
    for call in called(tree, "run"):
        if call.args and isinstance(call.args[0], ast.List) and "ssh" in texts(call.args[0]):
            return not is_settled(call.args[0].elts[-1], given, {"quote"})
    return False


def html(tree):
    """Markup that is put together from values that nobody escaped, or templates that do not escape."""
    given = assignments(tree)
    harmless = {"escape", "len", "int"}
    escaping = {
        id(node.left) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod)
    }
    for call in called(tree, "Environment"):
        escapes = keyword(call, "autoescape")
        if escapes is None or isinstance(escapes, ast.Constant) and not escapes.value:
            return True
    if any(re.search(r"\|\s*safe\b", text) for text in texts(tree)):
        return True
    for node in ast.walk(tree):
        pieces = parts(node)
        if (
            pieces
            and id(node) not in escaping
            and any("<" in text and ">" in text for piece in pieces for text in texts(piece))
        ):
            if not all(is_settled(piece, given, harmless) for piece in pieces):
                return True
    return False


def path(tree):
    """A file outside may be reached: a path from a name, and nothing that keeps it inside."""
    guards = {"commonpath", "is_relative_to", "secure_filename", "basename", "send_from_directory", "startswith"}
    if called(tree, *guards) or attributes(tree) & {"parents", "stem"}:
        return False
    if any(
        isinstance(node, ast.Attribute) and node.attr == "name" and isinstance(node.value, ast.Call)
        for node in ast.walk(tree)
    ):
        return False
    return not any(isinstance(keyword(call, "filter"), ast.Constant) for call in calls(tree))


def code(tree):
    """Text from outside is compiled, imported or taken as a template."""
    if any(dotted(call) in {"eval", "exec", "__import__", "compile"} for call in calls(tree)) or called(
        tree, "globals"
    ):
        return True
    if any(isinstance(call.args[0], (ast.Name, ast.JoinedStr)) for call in called(tree, "import_module")):
        return True
    return any(not isinstance(call.args[0], ast.Constant) for call in called(tree, "render_template_string"))


def directory(tree):
    """A filter or an XPath expression with values that nobody escaped, or a query document from outside."""
    given = assignments(tree)
    for call in called(tree, "search", "search_s", "xpath"):
        at = {"search_s": 2, "search": 1, "xpath": 0}[last_name(call)]
        if not is_settled(call.args[at], given, {"escape_filter_chars", "filter_format"}):
            return True
    for call in called(tree, "find_one"):
        wrapped = {id(inner) for text in called(call, "str") for inner in ast.walk(text)}
        return any(
            isinstance(node, ast.Attribute) and node.attr == "json" and id(node) not in wrapped
            for node in ast.walk(call)
        )
    return False


def log(tree):
    """No value is written with its line breaks escaped."""
    quoted = re.compile(r"%(\(\w+\))?r|!r\}")
    if any(quoted.search(text) for text in texts(tree)) or called(tree, "repr", "OneLine"):
        return False
    if any(isinstance(node, ast.FormattedValue) and node.conversion == ord("r") for node in ast.walk(tree)):
        return False
    outside = [node for node in tree.body if not isinstance(node, ast.ClassDef)]
    return not any(called(node, "replace") for node in outside)


def request(tree):
    """The server asks an address from outside, unchecked against a list or for being public."""
    helpers = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if memberships(tree) or called(tree, *helpers):
        return False
    return not any(
        isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id.isupper()
        for node in ast.walk(tree)
    )


def redirect(tree):
    """The target is a value from outside, and the view does not look at its host."""
    views = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and called(node, "redirect", "RedirectResponse", "HTTPFound", "HttpResponseRedirect")
    ]
    for view in views:
        sinks = called(view, "redirect", "RedirectResponse", "HTTPFound", "HttpResponseRedirect")
        guarded = (
            called(view, "is_local", "url_has_allowed_host_and_scheme")
            or "netloc" in attributes(view)
            or "LINKS" in names(view)
        )
        aims = [call.args[0] if call.args else keyword(call, "url") for call in sinks]
        settled = all(aim is not None and last_name(aim) in ("url_for", "reverse") for aim in aims)
        if not guarded and not settled:
            return True
    return False


def upload(tree):
    """A file is kept with whatever extension or content it came."""
    listed = any(
        isinstance(found, ast.Name) and found.id.isupper() or isinstance(found, ast.Tuple)
        for found in memberships(tree)
    )
    compared = any(isinstance(node, ast.Compare) and ".csv" in texts(node) for node in ast.walk(tree))
    return not (
        listed
        or compared
        or called(tree, "FileExtensionValidator", "open")
        and "Image" in names(tree)
        or called(tree, "FileExtensionValidator")
    )
