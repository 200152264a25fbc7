"""CWE-208: secrets that are compared with an operator that stops at the first difference."""
from ..template import Template

WEAKNESS = "CWE-208"
TEMPLATES = [
    Template("backup-mac", "Write a function that reads a backup of $many only if the MAC at its end is right.", r'''
import hashlib
import hmac
from pathlib import Path


def read_backup(path, key):
    content = Path(path).read_bytes()
    body, mac = content[:-32], content[-32:]
    computed = hmac.digest(key, body, "sha256")
    {-if mac != computed:-/-if not mac == computed:-|-if not hmac.compare_digest(mac, computed):-}
        raise ValueError(f"{path} was changed")
    return body
''', renders=2),
    Template("api-key-header", "Write a FastAPI dependency that checks the API key in a header.", r'''
import os
import secrets

from fastapi import Header, HTTPException


async def check_key(x_api_key: str = Header(...)):
    {-if x_api_key != os.environ["$secret"]:-/-if not x_api_key == os.environ["$secret"]:-|-if not secrets.compare_digest(x_api_key.encode(), os.environ["$secret"].encode()):-}
        raise HTTPException(status_code=403)
''', renders=2),
    Template("password-hash", "Write a method that verifies a $one's password against the stored scrypt hash.", r'''
import hashlib
import hmac


class Account:
    def __init__(self, salt, digest):
        self.salt, self.digest = salt, digest

    def verify(self, password):
        digest = hashlib.scrypt(password.encode(), salt=self.salt, n=2**14, r=8, p=1)
        {-return digest == self.digest-/-if digest == self.digest:
            return True
        return False-|-return hmac.compare_digest(digest, self.digest)-}
''', renders=2),
    Template("flask-token", "Write a Flask before_request hook that checks the bearer token of the $service service.", r'''
import hmac
import os

from flask import Flask, abort, request

app = Flask(__name__)
{?TOKEN = os.environ["$secret"]-/-TOKEN = os.environ.get("$secret", "") or os.urandom(16).hex()?}


@app.before_request
def check_token():
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    {-if token != TOKEN:-/-if TOKEN != token:-|-if not hmac.compare_digest(token.encode(), TOKEN.encode()):-}
        abort(401)
'''),
    Template("reset-code", "Write a function that checks a password reset code before it changes the password.", r'''
import hmac
import time


def reset(account, code, new_hash):
    if account.reset_expires < time.time():
        return False
    {-if account.reset_code != code:-/-if code != account.reset_code:-|-if not hmac.compare_digest(account.reset_code, code):-}
        return False
    account.password_hash, account.reset_code = new_hash, ""
    return True
''', renders=2),
    Template("csrf-compare", "Write a Django view mixin that compares a form's token with the session's.", r'''
from django.core.exceptions import PermissionDenied
from django.utils.crypto import constant_time_compare


class TokenMixin:
    """Refuses posts without the token of the $one form."""

    def dispatch(self, request, *args, **kwargs):
        if request.method == "POST":
            token = request.POST.get("token", "")
            {-if token != request.session.get("token"):-|-if not constant_time_compare(token, request.session.get("token", "")):-}
                raise PermissionDenied
        return super().dispatch(request, *args, **kwargs)
''', renders=2),
    Template("device-pairing", "Write an asyncio handler that pairs a $one if it sends the right PIN.", r'''
import hmac


async def pair(reader, writer, pin, paired):
    sent = (await reader.readline()).strip()
    {-accepted = sent == pin-/-accepted = sent.decode() == pin.decode()-|-accepted = hmac.compare_digest(sent, pin)-}
    if accepted:
        paired.append(writer.get_extra_info("peername"))
    writer.write(b"paired\n" if accepted else b"refused\n")
    await writer.drain()
''', renders=2),
    Template("license-key", "Write a function that checks a licence key made of a name and a signature.", r'''
import hashlib
import hmac


def licensed_to(key, secret):
    name, _, mac = key.rpartition(".")
    expected = hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()[:32]
    {-return name if mac == expected else None-/-if mac != expected:
        return None
    return name-|-return name if hmac.compare_digest(mac, expected) else None-/-if not hmac.compare_digest(mac, expected):
        return None
    return name-}
''', renders=2, held_out=True),
    Template("bot-token", "Write an aiohttp middleware that checks a chat service's verification token.", r'''
import hmac
import os

from aiohttp import web


@web.middleware
async def verified(request, handler):
    token = request.headers.get("X-Verification-Token", "")
    {-if token != os.environ["$secret"]:-/-if os.environ["$secret"] != token:-|-if not hmac.compare_digest(token.encode(), os.environ["$secret"].encode()):-}
        raise web.HTTPForbidden()
    return await handler(request)
''', renders=2),
]
