"""CWE-330: secrets that can be guessed from the generator's state or the clock."""
from ..template import Template

WEAKNESS = "CWE-330"
TEMPLATES = [
    Template("voucher", "Write a function that makes the code of a new voucher for $many, in groups such as K7QF-2M9X.", r'''
import {-random-|-secrets-}

LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"


def voucher_code(groups=3):
    {-return "-".join("".join(random.choice(LETTERS) for _ in range(4)) for _ in range(groups))-/-return "-".join("".join(random.choices(LETTERS, k=4)) for _ in range(groups))-|-return "-".join("".join(secrets.choice(LETTERS) for _ in range(4)) for _ in range(groups))-}
'''),
    Template("share-link", "Write a method that makes the secret part of a link under which a $one can be shared.", r'''
import secrets
import string
from random import SystemRandom, choices, getrandbits


class Shares:
    def __init__(self):
        self.links = {}

    def share(self, $one):
        {-secret = "".join(choices(string.ascii_lowercase, k=20))-/-secret = format(getrandbits(96), "x")-|-secret = secrets.token_urlsafe(18)-/-secret = format(secrets.randbits(128), "x")-}
        self.links[secret] = $one
        return "/shared/" + secret
''', renders=2),
    Template("session-id", "Write a session store whose create method returns the id of a new session.", r'''
import random
import secrets
import time


class Sessions:
    def __init__(self):
        self._open = {}

    def create(self, user):
        {-session_id = "%032x" % random.getrandbits(128)-/-session_id = f"{user}-{int(time.time() * 1000)}-{random.randint(0, 999999)}"-/-session_id = str(random.random())[2:]-|-session_id = secrets.token_hex(16)-/-session_id = secrets.token_urlsafe(24)-}
        self._open[session_id] = (user, time.time())
        return session_id
'''),
    Template("one-time-code", "Write a function that makes a six-digit code which is sent to a $one by text message.", r'''
import random
import secrets


def one_time_code():
    {-return f"{random.randint(0, 999999):06d}"-/-return str(random.randrange(100000, 1000000))-/-return "".join(str(random.randint(0, 9)) for _ in range(6))-|-return f"{secrets.randbelow(1000000):06d}"-/-return str(100000 + secrets.randbelow(900000))-/-return "".join(str(secrets.randbelow(10)) for _ in range(6))-}
'''),
    Template("api-key", "Write a Django model manager method that creates an API key for a $one.", r'''
import secrets
import uuid
from random import choice, sample
from string import ascii_letters, digits

from django.db import models


class ApiKeyManager(models.Manager):
    def issue(self, $one):
        {-key = "".join(choice(ascii_letters + digits) for _ in range(40))-/-key = str(uuid.uuid1())-/-key = "".join(sample(ascii_letters + digits, 40))-|-key = secrets.token_urlsafe(30)-}
        return self.create(owner=$one, key=key, active=True)
'''),
    Template("invite-link", "Write a Flask route that creates an invitation link for a $one.", r'''
import random
import secrets
import string

from flask import Blueprint, url_for

$bp = Blueprint("invitations", __name__)
open_invitations = {}


@$bp.post("/$many/<int:ident>/invitations")
def invite(ident):
    {-code = "".join(random.sample(string.ascii_lowercase + string.digits, 12))-/-code = hex(random.getrandbits(64))[2:]-|-code = secrets.token_urlsafe(16)-/-code = secrets.token_hex(16)-}
    open_invitations[code] = ident
    return {"link": url_for("invitations.accept", code=code, _external=True)}, 201
''', renders=2),
    Template("temporary-password", "Write a function that makes a first password for a new $one.", r'''
import random
import secrets
import string


def first_password(length=14):
    """A password with letters, digits and punctuation."""
    alphabet = string.ascii_letters + string.digits + "!#%+-_"
    {-rng = random.Random()
    return "".join(rng.choice(alphabet) for _ in range(length))-/-letters = list(alphabet)
    random.shuffle(letters)
    return "".join(letters[:length])-|-return "".join(secrets.choice(alphabet) for _ in range(length))-/-rng = secrets.SystemRandom()
    return "".join(rng.choice(alphabet) for _ in range(length))-}
''', renders=2),
    Template("nonce", "Write a function that builds the headers of a signed request to the $service service.", r'''
import hashlib
import hmac
import random
import secrets
import time


def signed_headers(key, method, path):
    timestamp = str(int(time.time()))
    {-nonce = str(random.randint(1, 10**9))-/-nonce = hashlib.sha256(timestamp.encode()).hexdigest()[:16]-|-nonce = secrets.token_hex(16)-}
    text = "\n".join([method, path, timestamp, nonce])
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return {"X-Time": timestamp, "X-Nonce": nonce, "X-Signature": signature}
''', renders=2, held_out=True),
]
