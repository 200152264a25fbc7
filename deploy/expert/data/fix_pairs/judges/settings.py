"""Judges of parsers, files' modes and places, errors, patterns, passwords' rules, forms, cookies and owners."""

import ast
from re import _parser as patterns

from .syntax import (
    attributes,
    called,
    calls,
    dotted,
    keyword,
    keyword_is,
    last_name,
    names,
    targets,
    texts,
)


def deserialisation(tree):
    """Bytes from outside say what is built from them."""
    if any(dotted(call).startswith(("pickle.", "marshal.", "dill.")) for call in calls(tree)) or called(
        tree, "unsafe_load"
    ):
        return True
    for call in called(tree, "load", "load_all"):
        owner = dotted(call).rpartition(".")[0]
        if owner == "yaml" and last_name(keyword(call, "Loader")) != "SafeLoader":
            return True
        if owner == "torch" and not keyword_is(call, "weights_only", True) or keyword_is(call, "allow_pickle", True):
            return True
    return False


def entities(tree):
    """A parser that resolves entities or loads what a document refers to."""
    unsafe = (("resolve_entities", True), ("load_dtd", True), ("dtd_validation", True), ("no_network", False))
    if any(keyword_is(call, name, value) for call in calls(tree) for name, value in unsafe):
        return True
    plain = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            plain |= {alias.asname or alias.name for alias in node.names if alias.name.startswith("xml.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xml"):
            plain |= {alias.asname or alias.name for alias in node.names}
    for call in called(tree, "fromstring", "parseString"):
        if dotted(call) in plain or dotted(call).rpartition(".")[0] in plain:
            return True
    return any(isinstance(call.args[1], ast.Constant) and call.args[1].value for call in called(tree, "setFeature"))


def mode(tree):
    """Others on the machine get rights to what is written."""
    if "S_IRWXO" in attributes(tree):
        return True
    for call in called(tree, "chmod", "open", "mkdir", "makedirs", "touch", "umask"):
        for argument in [*call.args, *(k.value for k in call.keywords)]:
            if isinstance(argument, ast.Constant) and type(argument.value) is int:
                others = ~argument.value & 0o007 if last_name(call) == "umask" else argument.value & 0o007
                if others:
                    return True
    return False


def temporary(tree):
    """A name under the shared folder for temporary files that others may take first."""
    return bool(called(tree, "mktemp", "gettempdir")) or any(text.startswith("/tmp") for text in texts(tree))


def details(tree):
    """A client learns what went wrong inside, or which half of a login was right."""
    if any(keyword_is(call, "debug", True) for call in calls(tree)):
        return True
    if any(name == "debug" and isinstance(value, ast.Constant) and value.value for name, value in targets(tree)):
        return True
    if any(
        isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and last_name(node.test.left) == "account"
        for node in ast.walk(tree)
    ):
        return True
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ExceptHandler):
            caught = scope.name
        elif isinstance(scope, ast.FunctionDef) and any(last_name(d) == "errorhandler" for d in scope.decorator_list):
            caught = scope.args.args[0].arg
        else:
            continue
        answers = [
            node.exc if isinstance(node, ast.Raise) else node.value
            for node in ast.walk(scope)
            if isinstance(node, (ast.Return, ast.Raise, ast.Assign))
        ]
        if any(answer is not None and (caught in names(answer) or called(answer, "format_exc")) for answer in answers):
            return True
    return False


def _is_ambiguous(parsed):
    """Whether some unbounded repeat can split a text in many ways: what it repeats has an unbounded repeat and
    nothing that must stand beside it."""
    for operation, argument in parsed:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            body = argument[2]
            if argument[1] is patterns.MAXREPEAT and _splits(body):
                return True
            inner = [body]
        elif name == "SUBPATTERN":
            inner = [argument[3]]
        elif name == "BRANCH":
            inner = argument[1]
        else:
            inner = []
        if any(_is_ambiguous(one) for one in inner):
            return True
    return False


def _splits(body):
    """Whether two rounds of `body` can also be one."""
    unbounded = False
    for operation, argument in body:
        name = str(operation)
        if name in ("LITERAL", "NOT_LITERAL", "IN", "ANY"):
            return False
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            unbounded |= argument[1] is patterns.MAXREPEAT
        elif name == "SUBPATTERN":
            unbounded |= _splits(argument[3])
        elif name == "BRANCH":
            unbounded |= any(_splits(one) for one in argument[1]) or any(
                str(one[0][0]) == "ANY" for one in argument[1] if len(one)
            )
    return unbounded


def pattern(tree):
    """A regular expression that backtracks without bound, or one that users write."""
    for call in called(tree, "compile", "match", "fullmatch", "findall", "sub", "search"):
        if not dotted(call).startswith("re."):
            continue
        if isinstance(call.args[0], ast.Constant):
            if _is_ambiguous(patterns.parse(call.args[0].value)):
                return True
        elif not called(call.args[0], "escape"):
            return True
    return False


def password_rule(tree):
    """No rule asks for twelve characters or for the framework's validators."""
    numbers = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and called(node.left, "len") and isinstance(node.comparators[0], ast.Constant):
            numbers.append(node.comparators[0].value)
        elif isinstance(node, ast.Call):
            numbers += [
                value.value for name in ("min", "min_length") if isinstance(value := keyword(node, name), ast.Constant)
            ]
        elif isinstance(node, ast.Dict):
            numbers += [
                v.value
                for k, v in zip(node.keys, node.values)
                if isinstance(k, ast.Constant) and k.value == "min_length"
            ]
    return max(numbers, default=0) < 12 and "validate_password" not in names(tree)


def forgery(tree):
    """A change needs nothing that another site's page could not send."""
    if names(tree) & {"csrf_protect", "CSRFProtect"} or called(tree, "compare_digest"):
        return False
    if any(text.endswith("CsrfViewMiddleware") for text in texts(tree)):
        return False
    if any(isinstance(node, ast.Compare) and "ORIGIN" in names(node) for node in ast.walk(tree)):
        return False
    for call in called(tree, "route"):
        methods = keyword(call, "methods")
        if methods is not None and texts(methods) == ["POST"]:
            return False
    return not any(calls_of and "*" not in texts(calls_of) for calls_of in called(tree, "CORS"))


def cookie(tree):
    """A session's cookie that scripts can read or that travels unencrypted."""
    for call in called(tree, "set_cookie", "set_signed_cookie"):
        if not (keyword_is(call, "httponly", True) and keyword_is(call, "secure", True)):
            return True
    if any(
        "SessionMiddleware" in names(call) and not keyword_is(call, "https_only", True)
        for call in called(tree, "Middleware")
    ):
        return True
    for name, value in targets(tree):
        if (
            name.endswith(("COOKIE_SECURE", "COOKIE_HTTPONLY"))
            and isinstance(value, ast.Constant)
            and value.value is not True
        ):
            return True
    return bool(called(tree, "SimpleCookie")) and not {"secure", "httponly"} <= {
        name for name, value in targets(tree) if isinstance(value, ast.Constant) and value.value is True
    }


def owner(tree):
    """A record is reached by its number alone."""
    for call in calls(tree):
        if last_name(call) not in ("save", "create", "get_or_create") and any(
            k.arg in ("owner", "owner_id") for k in call.keywords
        ):
            return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            compared = names(node) | attributes(node)
            if "owner_id" in attributes(node) or "EDITABLE" in names(node) or {"user", "_notes"} <= compared:
                return False
    return not any("owner_id" in text for text in texts(tree))
