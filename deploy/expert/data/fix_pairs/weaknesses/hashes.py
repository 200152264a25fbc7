"""CWE-328 and CWE-916: hashes that can be made to collide, and password hashes that are quick to guess."""
from ..template import Template

WEAKNESS = "CWE-328"
TEMPLATES = [
    Template("file-digest", "Write a function that computes the checksum of a release file so that users can verify it.", r'''
import hashlib


def release_digest(path):
    """Digest of the file, as published beside the download."""
    digest = {-hashlib.md5()-/-hashlib.sha1()-/-hashlib.new("md5")-|-hashlib.sha256()-/-hashlib.sha512()-/-hashlib.new("sha256")-}
    with open(path, "rb") as file:
        {?for block in iter(lambda: file.read(65536), b""):
            digest.update(block)-/-while block := file.read(1 << 16):
            digest.update(block)?}
    return digest.hexdigest()
'''),
    Template("password-store", "Write the two functions that hash and check the password of a $one.", r'''
import hashlib
import hmac
import os


def hash_password(password):
    salt = os.urandom(16)
    {-digest = hashlib.sha256(salt + password.encode()).digest()-/-digest = hashlib.md5(salt + password.encode()).digest()-/-digest = hashlib.sha1(salt + password.encode("utf-8")).digest()-|-digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 600_000)-/-digest = hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)-/-digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 250_000)-}
    return salt + digest


def check_password(password, stored):
    salt, digest = stored[:16], stored[16:]
    {-return hmac.compare_digest(digest, hashlib.sha256(salt + password.encode()).digest())-/-return hmac.compare_digest(digest, hashlib.md5(salt + password.encode()).digest())-/-return hmac.compare_digest(digest, hashlib.sha1(salt + password.encode("utf-8")).digest())-|-return hmac.compare_digest(digest, hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 600_000))-/-return hmac.compare_digest(digest, hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1))-/-return hmac.compare_digest(digest, hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 250_000))-}
''', renders=3),
    Template("sqlalchemy-user", "Write a SQLAlchemy model of an account whose set_password method stores the password safely.", r'''
import hashlib

from sqlalchemy import Column, Integer, String
from sqlalchemy.orm import declarative_base
from werkzeug.security import check_password_hash, generate_password_hash

Base = declarative_base()


class Account(Base):
    __tablename__ = "accounts"
    id = Column(Integer, primary_key=True)
    {?login-/-email?} = Column(String(120), unique=True)
    password_hash = Column(String(255))

    def set_password(self, password):
        self.password_hash = {-hashlib.md5(password.encode()).hexdigest()-/-hashlib.sha1(password.encode()).hexdigest()-/-hashlib.sha256(password.encode()).hexdigest()-|-generate_password_hash(password)-}

    def check_password(self, password):
        {-return self.password_hash == hashlib.md5(password.encode()).hexdigest()-/-return self.password_hash == hashlib.sha1(password.encode()).hexdigest()-/-return self.password_hash == hashlib.sha256(password.encode()).hexdigest()-|-return check_password_hash(self.password_hash, password)-}
''', renders=3),
    Template("hmac-signature", "Write a function that signs the body of a webhook about a $one with a shared secret.", r'''
import hashlib
import hmac


def sign(secret, $payload):
    """Hexadecimal signature for the X-Signature header."""
    {-return hmac.new(secret, $payload, hashlib.md5).hexdigest()-/-return hashlib.sha1(secret + $payload).hexdigest()-/-return hmac.new(secret, $payload, "sha1").hexdigest()-|-return hmac.new(secret, $payload, hashlib.sha256).hexdigest()-/-return hmac.new(secret, $payload, hashlib.sha256).hexdigest()-/-return hmac.new(secret, $payload, "sha256").hexdigest()-}
'''),
    Template("bcrypt-register", "Write a function that registers a new $one with login and password in a dictionary of accounts.", r'''
import hashlib

import bcrypt


def register(accounts, login, password):
    if login in accounts:
        raise ValueError(f"{login} is taken")
    accounts[login] = {
        "role": "$one",
        {-"password": hashlib.sha512(password.encode()).hexdigest(),-/-"password": hashlib.md5(password.encode("utf-8")).hexdigest(),-|-"password": bcrypt.hashpw(password.encode(), bcrypt.gensalt()),-}
    }
''', renders=2),
    Template("certificate-hash", "Write a function that signs a certificate request for the $service hosts with our own authority.", r'''
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes


def issue(request, authority, authority_key, days=90):
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(authority.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=days))
        .sign(authority_key, {-hashes.SHA1()-/-hashes.MD5()-|-hashes.SHA256()-/-hashes.SHA384()-})
    )
''', renders=2),
    Template("cheap-iterations", "Write a function that derives an encryption key from a passphrase.", r'''
import hashlib


def derive_key(passphrase, salt):
    {-return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), salt, 1000, dklen=32)-/-return hashlib.pbkdf2_hmac("md5", passphrase.encode(), salt, 1, dklen=32)-|-return hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, 600_000, dklen=32)-/-return hashlib.pbkdf2_hmac("sha512", passphrase.encode(), salt, 210_000, dklen=32)-}
''', renders=2),
    Template("token-digest", "Write a class that remembers only digests of the access tokens of $many.", r'''
import hashlib


class TokenTable:
    def __init__(self):
        self._owners = {}

    @staticmethod
    def _digest(token):
        {-return hashlib.md5(token.encode()).hexdigest()-/-return hashlib.sha1(token.encode()).hexdigest()-|-return hashlib.sha256(token.encode()).hexdigest()-/-return hashlib.blake2b(token.encode()).hexdigest()-}

    def add(self, token, $one):
        self._owners[self._digest(token)] = $one

    def owner(self, token):
        return self._owners.get(self._digest(token))
''', renders=2, held_out=True),
]
