"""Judges of ciphers, hashes, randomness, certificates, credentials, tokens and comparisons."""

import ast
import re

from .syntax import (
    assignments,
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

SECRET_NAME = re.compile(r"secret|password|passwd|token|key\b|_key|KEY", re.I)


def cipher(tree):
    """A cipher, mode, protocol, padding, key size or initialisation vector that does not protect."""
    if attributes(tree) & {
        "ECB",
        "MODE_ECB",
        "PROTOCOL_TLSv1",
        "PROTOCOL_TLSv1_1",
        "PROTOCOL_SSLv23",
        "TLSv1",
        "TLSv1_1",
        "PKCS1v15",
    }:
        return True
    if any(dotted(call) in ("DES.new", "ARC4.new") for call in calls(tree)):
        return True
    if any(re.search(r"RC4|DES|ALL", text) for call in called(tree, "set_ciphers") for text in texts(call)):
        return True
    sizes = [keyword(call, "key_size") for call in calls(tree)]
    if any(isinstance(size, ast.Constant) and size.value < 2048 for size in sizes):
        return True
    vectors = assignments(tree).get("iv", [])
    if any(isinstance(vector, (ast.Constant, ast.BinOp, ast.Subscript)) for vector in vectors):
        return True
    mixed = any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor) for node in ast.walk(tree))
    reversed_text = any(isinstance(node, ast.Slice) and node.step is not None for node in ast.walk(tree))
    return mixed or reversed_text


def digest(tree):
    """MD5 or SHA-1, or a password behind a hash that is quick to compute."""
    weak = {"md5", "sha1", "MD5", "SHA1"}
    if attributes(tree) & weak or weak & set(texts(tree)):
        return True
    for call in called(tree, "sha256", "sha512"):
        if "password" in names(call):
            return True
    return any(
        isinstance(call.args[3], ast.Constant) and call.args[3].value < 100_000 for call in called(tree, "pbkdf2_hmac")
    )


def randomness(tree):
    """A value that must not be guessed comes from a generator that can be predicted, or from the clock."""
    from_random = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "random"
        for alias in node.names
    }
    for call in calls(tree):
        name = dotted(call)
        if name.startswith("random.") or name in from_random or last_name(call) == "uuid1":
            return True
    return any(
        last_name(value) == ""
        and "timestamp" in names(value)
        or "sha256" in attributes(value)
        and "timestamp" in names(value)
        for value in assignments(tree).get("nonce", [])
    )


def certificate(tree):
    """A peer is taken for what it says it is."""
    if attributes(tree) & {
        "_create_unverified_context",
        "_create_stdlib_context",
        "CERT_NONE",
        "AutoAddPolicy",
        "WarningPolicy",
    }:
        return True
    if {"CERT_NONE", "require", "prefer"} & set(texts(tree)):
        return True
    if any(keyword_is(call, name, False) for call in calls(tree) for name in ("verify", "ssl", "verify_ssl")):
        return True
    return any(
        name in ("verify", "check_hostname") and isinstance(value, ast.Constant) and value.value is False
        for name, value in targets(tree)
    )


def credential(tree):
    """A secret stands in the source."""

    def literal(node):
        return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)) and len(node.value) > 3

    if any(SECRET_NAME.search(name) and literal(value) for name, value in targets(tree)):
        return True
    for call in calls(tree):
        if any(k.arg and SECRET_NAME.search(k.arg) and literal(k.value) for k in call.keywords):
            return True
        if last_name(call) in ("compare_digest", "Fernet") and any(literal(argument) for argument in call.args):
            return True
    return any(re.search(r"://[^/]*:[^/]+@", text) for text in texts(tree))


def token(tree):
    """A token's claims or a body are used though nobody has checked the signature."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if (
                    isinstance(key, ast.Constant)
                    and str(key.value).startswith("verify_")
                    and isinstance(value, ast.Constant)
                    and value.value is False
                ):
                    return True
    if "none" in texts(tree) or called(tree, "get_unverified_claims", "get_unverified_header"):
        return True
    if any(keyword_is(call, "verify", False) for call in calls(tree)):
        return True
    return bool(called(tree, "new")) and "hmac" in names(tree) and not called(tree, "compare_digest")


def comparison(tree):
    """A secret is compared, and not in constant time."""
    return not called(tree, "compare_digest", "constant_time_compare")
