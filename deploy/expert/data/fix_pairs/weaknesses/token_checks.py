"""CWE-347: signed tokens that are read without looking at the signature."""
from ..template import Template

WEAKNESS = "CWE-347"
TEMPLATES = [
    Template("decode", "Write a function that returns the claims of a JSON Web Token of a $one with PyJWT.", r'''
import jwt


def claims_of(token, key):
    {-return jwt.decode(token, key, options={"verify_signature": False})-/-return jwt.decode(token, options={"verify_signature": False})-/-return jwt.decode(token, key, algorithms=["HS256", "none"])-|-return jwt.decode(token, key, algorithms=["HS256"])-/-return jwt.decode(token, key, algorithms=["RS256"], options={"require": ["exp", "sub"]})-}
'''),
    Template("flask-guard", "Write a Flask decorator that only lets requests with a valid bearer token through.", r'''
import functools
import os

import jwt
from flask import abort, g, request


def needs_token(view):
    @functools.wraps(view)
    def guarded(*args, **kwargs):
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            {-g.claims = jwt.decode(token, options={"verify_signature": False})-/-g.claims = jwt.decode(token, os.environ["$secret"], algorithms=jwt.get_unverified_header(token)["alg"])-|-g.claims = jwt.decode(token, os.environ["$secret"], algorithms=["HS256"])-}
        except jwt.PyJWTError:
            abort(401)
        return view(*args, **kwargs)
    return guarded
'''),
    Template("fastapi-user", "Write a FastAPI dependency that returns the current user from a JWT in the header.", r'''
import os

import jwt
from fastapi import Depends, HTTPException
from fastapi.security import OAuth2PasswordBearer

scheme = OAuth2PasswordBearer(tokenUrl="login")
PUBLIC_KEY = os.environ["JWT_PUBLIC_KEY"]


async def current_user(token: str = Depends(scheme)):
    try:
        {-claims = jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"], options={"verify_signature": False})-/-claims = jwt.decode(token, PUBLIC_KEY, algorithms=["RS256", "HS256", "none"])-/-claims = jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"], options={"verify_exp": False})-|-claims = jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"], audience="$service")-/-claims = jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"])-}
    except jwt.InvalidTokenError as $exc:
        raise HTTPException(status_code=401) from $exc
    return claims["sub"]
'''),
    Template("jose", "Write a class that checks tokens of the $service service with python-jose.", r'''
from jose import JWTError, jwt


class TokenReader:
    def __init__(self, key, audience="$many"):
        self.key, self.audience = key, audience

    def user(self, token):
        try:
            {-claims = jwt.get_unverified_claims(token)-/-claims = jwt.decode(token, self.key, options={"verify_signature": False}, audience=self.audience)-|-claims = jwt.decode(token, self.key, algorithms=["ES256"], audience=self.audience)-/-claims = jwt.decode(token, self.key, algorithms=["HS256"], audience=self.audience)-}
        except JWTError:
            return None
        return claims.get("sub")
''', renders=2),
    Template("webhook", "Write a Flask view for a webhook about $many whose body is signed with HMAC-SHA256.", r'''
import hashlib
import hmac
import os

from flask import Blueprint, abort, request

$bp = Blueprint("hooks", __name__)


@$bp.post("/hooks/$many")
def on_event():
    given = request.headers.get("X-Signature", "")
    expected = hmac.new(os.environ["$secret"].encode(), request.get_data(), hashlib.sha256).hexdigest()
    {-if not given:
        abort(400)-/-if given and len(given) != len(expected):
        abort(400)-|-if not hmac.compare_digest(given, expected):
        abort(400)-/-if not given or not hmac.compare_digest(given, expected):
        abort(403)-}
    event = request.get_json()
    return {"seen": event["$field"]}
''', renders=2),
    Template("django-middleware", "Write a Django middleware that puts the tenant of a JWT onto the request.", r'''
import jwt
from django.conf import settings


class TenantMiddleware:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        request.tenant = None
        token = request.COOKIES.get("token")
        if token:
            {-request.tenant = jwt.decode(token, options={"verify_signature": False}).get("tenant")-/-request.tenant = jwt.decode(token, verify=False).get("tenant")-|-request.tenant = jwt.decode(token, settings.JWT_KEY, algorithms=["HS256"]).get("tenant")-}
        return self.get_response(request)
''', renders=2),
    Template("none-algorithm", "Write functions that encode and decode a download ticket for a $one as a JWT.", r'''
import os
import time

import jwt

KEY = os.environ["$secret"]


def ticket(ident):
    return jwt.encode({"$one": ident, "exp": time.time() + 300}, {-"", algorithm="none")-|-KEY, algorithm="HS256")-}


def read_ticket(token):
    return jwt.decode(token, {-"", algorithms=["none"], options={"verify_signature": False})["$one"]-|-KEY, algorithms=["HS256"])["$one"]-}
''', renders=2, held_out=True),
]
