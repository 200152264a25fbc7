"""CWE-614 and CWE-1004: session cookies that scripts and plain HTTP can read."""
from ..template import Template

WEAKNESS = "CWE-614"
TEMPLATES = [
    Template("flask-cookie", "Write a Flask view that logs a $one in and sets a session cookie.", r'''
from flask import Blueprint, make_response, request

from .sessions import open_session

$bp = Blueprint("login", __name__)


@$bp.post("/login")
def login():
    session_id = open_session(request.form["login"], request.form["password"])
    answer = make_response({"ok": True})
    {-answer.set_cookie("session", session_id)-/-answer.set_cookie("session", session_id, max_age=86400)-/-answer.set_cookie("session", session_id, httponly=False, secure=False)-|-answer.set_cookie("session", session_id, httponly=True, secure=True, samesite="Lax")-/-answer.set_cookie("session", session_id, max_age=86400, httponly=True, secure=True, samesite="Strict")-}
    return answer
'''),
    Template("fastapi-cookie", "Write a FastAPI login endpoint that returns a session cookie.", r'''
from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel

router = APIRouter()


class Login(BaseModel):
    name: str
    password: str


@router.post("/login")
async def login(given: Login, response: Response):
    token = await router.sessions.open(given.name, given.password)
    if token is None:
        raise HTTPException(status_code=401)
    {-response.set_cookie("token", token, max_age=3600)-/-response.set_cookie(key="token", value=token)-|-response.set_cookie("token", token, max_age=3600, httponly=True, secure=True, samesite="lax")-/-response.set_cookie(key="token", value=token, httponly=True, secure=True, samesite="strict")-}
    return {"name": given.name}
''', renders=2),
    Template("django-settings", "Write the session and cookie part of a Django settings module.", r'''
SESSION_ENGINE = "django.contrib.sessions.backends.{?db-/-cache?}"
SESSION_COOKIE_NAME = "$service"
SESSION_COOKIE_AGE = {?8 * 3600-/-86400?}
{-SESSION_COOKIE_SECURE = False
SESSION_COOKIE_HTTPONLY = False-/-SESSION_COOKIE_HTTPONLY = False
CSRF_COOKIE_SECURE = False-|-SESSION_COOKIE_SECURE = True
SESSION_COOKIE_HTTPONLY = True-/-SESSION_COOKIE_HTTPONLY = True
CSRF_COOKIE_SECURE = True-}
''', renders=2),
    Template("flask-config", "Write a configuration class for a Flask application with login sessions.", r'''
import os
from datetime import timedelta


class Config:
    SECRET_KEY = os.environ["SECRET_KEY"]
    PERMANENT_SESSION_LIFETIME = timedelta(hours={?8-/-2-/-12?})
    {-SESSION_COOKIE_SECURE = False-/-SESSION_COOKIE_HTTPONLY = False
    SESSION_COOKIE_SAMESITE = None-|-SESSION_COOKIE_SECURE = True
    SESSION_COOKIE_HTTPONLY = True-/-SESSION_COOKIE_HTTPONLY = True
    SESSION_COOKIE_SAMESITE = "Lax"-}
    TEMPLATES_AUTO_RELOAD = False
''', renders=2),
    Template("django-response", "Write a Django view that remembers a $one's device with a long-lived cookie.", r'''
import secrets

from django.http import JsonResponse

from .models import Device


def remember(request):
    token = secrets.token_urlsafe(32)
    Device.objects.create(user=request.user, token=token)
    answer = JsonResponse({"remembered": True})
    {-answer.set_cookie("device", token, max_age=30 * 86400)-/-answer.set_cookie("device", token, max_age=30 * 86400, secure=False)-|-answer.set_cookie("device", token, max_age=30 * 86400, secure=True, httponly=True, samesite="Lax")-/-answer.set_signed_cookie("device", token, max_age=30 * 86400, secure=True, httponly=True)-}
    return answer
''', renders=2),
    Template("aiohttp-cookie", "Write an aiohttp handler that starts a session for a $one.", r'''
import secrets

from aiohttp import web


async def start(request):
    form = await request.post()
    token = secrets.token_hex(32)
    request.app["sessions"][token] = form["$field"]
    answer = web.HTTPSeeOther("/")
    {-answer.set_cookie("sid", token)-/-answer.set_cookie("sid", token, path="/")-|-answer.set_cookie("sid", token, secure=True, httponly=True, samesite="Lax")-/-answer.set_cookie("sid", token, path="/", secure=True, httponly=True)-}
    return answer
''', renders=2),
    Template("simple-cookie", "Write a function that adds the cookie of a cart to the headers of a WSGI answer with http.cookies.", r'''
from http.cookies import SimpleCookie


def add_cart_cookie(headers, cart):
    cookie = SimpleCookie()
    cookie["cart"] = cart
    cookie["cart"]["path"] = "/shop"
    {-cookie["cart"]["max-age"] = 3600-/-cookie["cart"]["secure"] = False-|-cookie["cart"]["secure"] = True
    cookie["cart"]["httponly"] = True
    cookie["cart"]["max-age"] = 3600-/-cookie["cart"]["secure"] = True
    cookie["cart"]["httponly"] = True-}
    headers.append(("Set-Cookie", cookie["cart"].OutputString()))
''', renders=2, held_out=True),
    Template("starlette-session", "Set up session middleware for a Starlette application of the $service service.", r'''
import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware

app = Starlette(middleware=[
    Middleware(SessionMiddleware, secret_key=os.environ["SESSION_KEY"], {-max_age=86400-/-https_only=False-|-max_age=86400, https_only=True-/-https_only=True-}),
])
''', renders=2),
    Template("token-refresh", "Write a Flask view that replaces the refresh token of a $one.", r'''
import secrets

from flask import Blueprint, abort, jsonify, request

$bp = Blueprint("tokens", __name__)
owners = {}


@$bp.post("/refresh")
def refresh():
    owner = owners.pop(request.cookies.get("refresh", ""), None)
    if owner is None:
        abort(401)
    token = secrets.token_urlsafe(32)
    owners[token] = owner
    answer = jsonify($one=owner)
    {-answer.set_cookie("refresh", token, path="/refresh")-/-answer.set_cookie("refresh", token)-|-answer.set_cookie("refresh", token, path="/refresh", secure=True, httponly=True, samesite="Strict")-/-answer.set_cookie("refresh", token, secure=True, httponly=True)-}
    return answer
''', renders=2),
]
