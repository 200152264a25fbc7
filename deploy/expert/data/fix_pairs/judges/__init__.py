"""A judge for each weakness: does this tree show it?

They tell the two versions of our own pairs apart and are no scanners: each knows the idioms of its weakness's
templates. A judge that answers by the absence of a guard would call any code without the weakness's sink vulnerable.
"""

import ast

from . import injection, secrets, settings

JUDGES = {
    "CWE-022": injection.path,
    "CWE-078": injection.command,
    "CWE-079": injection.html,
    "CWE-089": injection.sql,
    "CWE-090": injection.directory,
    "CWE-094": injection.code,
    "CWE-117": injection.log,
    "CWE-208": secrets.comparison,
    "CWE-209": settings.details,
    "CWE-295": secrets.certificate,
    "CWE-327": secrets.cipher,
    "CWE-328": secrets.digest,
    "CWE-330": secrets.randomness,
    "CWE-347": secrets.token,
    "CWE-352": settings.forgery,
    "CWE-377": settings.temporary,
    "CWE-434": injection.upload,
    "CWE-502": settings.deserialisation,
    "CWE-521": settings.password_rule,
    "CWE-601": injection.redirect,
    "CWE-611": settings.entities,
    "CWE-614": settings.cookie,
    "CWE-639": settings.owner,
    "CWE-732": settings.mode,
    "CWE-798": secrets.credential,
    "CWE-918": injection.request,
    "CWE-1333": settings.pattern,
}


def is_vulnerable(weakness, source):
    """Raises SyntaxError where `source` is no Python, KeyError where there is no judge for `weakness`."""
    return JUDGES[weakness](ast.parse(source))
