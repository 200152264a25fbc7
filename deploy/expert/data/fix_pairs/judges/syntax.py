"""What the judges ask of a syntax tree."""

import ast


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def dotted(node):
    """`os.path.join` for such an expression; the last names alone behind anything but a name."""
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value) if isinstance(node.value, (ast.Name, ast.Attribute)) else ""
        return f"{owner}.{node.attr}" if owner else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def last_name(node):
    return dotted(node).rpartition(".")[2]


def called(tree, *names):
    """Calls of a function or method whose last name is one of `names`."""
    return [call for call in calls(tree) if last_name(call) in names]


def keyword(call, name):
    return next((k.value for k in call.keywords if k.arg == name), None)


def keyword_is(call, name, value):
    found = keyword(call, name)
    return isinstance(found, ast.Constant) and found.value is value


def texts(tree):
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def names(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def attributes(tree):
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def assignments(tree):
    """Name -> all that it is given, by `=` and by `+=`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, []).append(node.value)
    return found


def targets(tree):
    """(name, value) of each assignment to a name, an attribute or a subscript with a constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                    yield str(target.slice.value), node.value
                elif isinstance(target, (ast.Name, ast.Attribute)):
                    yield last_name(target), node.value


def memberships(tree):
    """What `in` and `not in` look in."""
    return [
        node.comparators[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn))
    ]


def parts(node):
    """The parts that a text is put together from, or None where the expression builds no text."""
    if isinstance(node, ast.JoinedStr):
        return [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [parts(side) or [side] for side in (node.left, node.right)]
        return (
            sides[0] + sides[1]
            if any(isinstance(p, ast.Constant) and isinstance(p.value, str) for p in sides[0] + sides[1])
            else None
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant):
        return [node.left, *(node.right.elts if isinstance(node.right, ast.Tuple) else [node.right])]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return [node.func.value, *node.args] if isinstance(node.func.value, ast.Constant) else None
    return None


def is_settled(node, given, allowed, visiting=frozenset()):
    """Whether no outside value gets into `node` except through a call of one of `allowed`."""
    if node is None or isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        known = given.get(node.id, []) if node.id not in visiting else []
        return bool(known) and all(is_settled(value, given, allowed, visiting | {node.id}) for value in known)
    if isinstance(node, ast.Call) and last_name(node) in allowed:
        return True
    if isinstance(node, ast.Call) and last_name(node) in ("join", "str"):
        return all(is_settled(a, given, allowed, visiting) for a in node.args)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, node.right))
    pieces = parts(node)
    return pieces is not None and all(is_settled(piece, given, allowed, visiting) for piece in pieces)
