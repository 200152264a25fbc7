"""CWE-601: redirects to wherever a link says."""
from ..template import Template

WEAKNESS = "CWE-601"
TEMPLATES = [
    Template("flask-login", "Write a Flask login view that sends the user back to the page in the `next` parameter.", r'''
from urllib.parse import urlparse

from flask import Blueprint, redirect, render_template, request, url_for
from flask_login import login_user

from .accounts import verify

$bp = Blueprint("accounts", __name__)


def is_local(target):
    parts = urlparse(target)
    return not parts.scheme and not parts.netloc and target.startswith("/")


@$bp.route("/login", methods=["GET", "POST"])
def login():
    if request.method == "GET":
        return render_template("login.html")
    account = verify(request.form["login"], request.form["password"])
    if account is None:
        return render_template("login.html", failed=True), 401
    login_user(account)
    target = request.args.get("next")
    {-return redirect(target or url_for("$many.index"))-/-if target:
        return redirect(target)
    return redirect(url_for("$many.index"))-|-if not target or not is_local(target):
        target = url_for("$many.index")
    return redirect(target)-/-if target and is_local(target):
        return redirect(target)
    return redirect(url_for("$many.index"))-}
'''),
    Template("django-next", "Write a Django view that stores a choice of $other and returns to the page that the form names.", r'''
from django.shortcuts import redirect
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST


@require_POST
def choose_$other(request):
    request.session["$other"] = request.POST["$other"]
    back = request.POST.get("next", "/")
    {-return redirect(back)-|-if not url_has_allowed_host_and_scheme(back, allowed_hosts={request.get_host()}):
        back = "/"
    return redirect(back)-}
'''),
    Template("fastapi-return", "Write a FastAPI logout endpoint that redirects to the address given as return_to.", r'''
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

router = APIRouter()
HOSTS = {"www.example.com", "$service.example.com"}


@router.get("/logout")
async def logout(return_to: str = "/"):
    {-answer = RedirectResponse(return_to)-/-answer = RedirectResponse(url=return_to, status_code=303)-|-if urlsplit(return_to).netloc not in HOSTS:
        return_to = "/"
    answer = RedirectResponse(return_to)-/-host = urlsplit(return_to).netloc
    answer = RedirectResponse(url=return_to if host in HOSTS else "/", status_code=303)-}
    answer.delete_cookie("session")
    return answer
'''),
    Template("click-counter", "Write a Flask route that counts clicks on a link and then sends the reader on.", r'''
from collections import Counter

from flask import Flask, abort, redirect, request

app = Flask(__name__)
clicks = Counter()
LINKS = {"docs": "https://docs.example.com/", "shop": "https://shop.example.com/$many"}


@app.get("/out")
def out():
    link = request.args["to"]
    clicks[link] += 1
    {-return redirect(link, code=302)-/-return redirect(request.args["to"])-|-if link not in LINKS:
        abort(404)
    return redirect(LINKS[link], code=302)-}
'''),
    Template("location-header", "Write an aiohttp handler that changes the language cookie and redirects back.", r'''
from urllib.parse import urlparse

from aiohttp import web

LANGUAGES = {"en", "de", "fr", "cs"}


async def set_language(request):
    back = request.query.get("back", "/")
    {--|-parts = urlparse(back)
    if parts.scheme or parts.netloc or not back.startswith("/"):
        back = "/"
    -}answer = web.HTTPFound(back)
    language = request.match_info["language"]
    if language in LANGUAGES:
        answer.set_cookie("language", language)
    return answer
''', renders=2),
    Template("django-referer", "Write a Django view that marks a $one as read and goes back to where the user came from.", r'''
from urllib.parse import urlsplit

from django.http import HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import reverse

from .models import $cls


def mark_read(request, pk):
    get_object_or_404($cls, pk=pk, owner=request.user).mark_read()
    {-return HttpResponseRedirect(request.GET.get("return", reverse("$many")))-/-target = request.GET.get("return") or reverse("$many")
    return HttpResponseRedirect(target)-|-return HttpResponseRedirect(reverse("$many"))-/-target = request.GET.get("return") or reverse("$many")
    if urlsplit(target).netloc:
        target = reverse("$many")
    return HttpResponseRedirect(target)-}
''', renders=2, held_out=True),
    Template("short-links", "Write a Django view that expands a short link stored in the query string and redirects to it.", r'''
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpResponseBadRequest
from django.shortcuts import redirect


def go(request):
    destination = request.GET["u"]
    {--|-if urlsplit(destination).netloc not in settings.LINK_HOSTS:
        return HttpResponseBadRequest("unknown host")
    -}return redirect(destination{?-/-, permanent=False?})
''', renders=2),
    Template("after-payment", "Write a Flask view that brings the customer back to the shop after a payment for a $one.", r'''
from urllib.parse import urlsplit

from flask import Blueprint, redirect, request, url_for

$bp = Blueprint("payments", __name__)


@$bp.get("/payments/done")
def done():
    back = request.args.get("return_url") or url_for("$many.index")
    {-return redirect(back)-/-return redirect(request.args.get("return_url", "/"))-|-if urlsplit(back).netloc not in ("", request.host):
        back = url_for("$many.index")
    return redirect(back)-}
''', renders=2),
]
