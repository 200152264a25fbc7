"""CWE-117: line breaks from users that forge entries of a log."""
from ..template import Template

WEAKNESS = "CWE-117"
TEMPLATES = [
    Template("history-file", "Write a function that notes in a history file which article an editor has changed and why.", r'''
import time


def note_change(history, editor, article, reason=""):
    {-entry = f"[{time.strftime('%F %T')}] {editor}: {article} ({reason})"-/-entry = "[%s] %s: %s (%s)" % (time.strftime("%F %T"), editor, article, reason)-|-entry = f"[{time.strftime('%F %T')}] {editor!r}: {article!r} ({reason!r})"-/-entry = "[%s] %r: %r (%r)" % (time.strftime("%F %T"), editor, article, reason)-}
    with open(history, "a") as out:
        print(entry, file=out)
'''),
    Template("login-failed", "Write a Flask login handler that logs failed attempts with the name that was given.", r'''
import logging

from flask import Blueprint, abort, request

from .accounts import check

$bp = Blueprint("login", __name__)
$log = logging.getLogger("$service.login")


@$bp.post("/login")
def login():
    user = request.form["user"]
    if not check(user, request.form["password"]):
        {-$log.warning("login failed for %s", user)-/-$log.warning(f"login failed for {user}")-/-$log.warning("login failed for " + user)-|-$log.warning("login failed for %r", user)-/-$log.warning(f"login failed for {user!r}")-/-$log.warning("login failed for " + user.replace("\r", " ").replace("\n", " "))-}
        abort(401)
    return "", 204
'''),
    Template("django-search", "Write a Django view that logs what users search for among $many.", r'''
import logging

from django.shortcuts import render

from .models import $cls

$log = logging.getLogger(__name__)


def search(request):
    term = request.GET.get("q", "")
    {-$log.info("search for %s by %s", term, request.user.pk)-/-$log.info("search for {} by {}".format(term, request.user.pk))-|-$log.info("search for %r by %s", term, request.user.pk)-/-$log.info("search for {!r} by {}".format(term, request.user.pk))-}
    found = $cls.objects.filter($field__icontains=term)[:50]
    return render(request, "$many/search.html", {"found": found})
'''),
    Template("header-log", "Write an aiohttp middleware that logs the user agent of each request.", r'''
import logging

from aiohttp import web

$log = logging.getLogger("$service.access")


@web.middleware
async def log_agent(request, handler):
    agent = request.headers.get("User-Agent", "-")
    {-$log.info("%s %s %s", request.method, request.rel_url.path, agent)-/-$log.info(request.method + " " + request.rel_url.path + " " + agent)-|-$log.info("%s %r %r", request.method, request.rel_url.path, agent)-/-$log.info(request.method + " " + repr(request.rel_url.path) + " " + repr(agent))-}
    return await handler(request)
'''),
    Template("socket-chat", "Write a TCP handler that writes each line's sender and text to the log of the chat.", r'''
import logging
import socketserver


class Chat(socketserver.StreamRequestHandler):
    def handle(self):
        sender = self.rfile.readline(256).decode("utf-8", "replace").rstrip("\n")
        text = self.rfile.read(4096).decode("utf-8", "replace")
        {-logging.info("%s: %s", sender, text)-/-logging.info(f"{sender}: {text}")-|-logging.info("%r: %r", sender, text)-/-logging.info(f"{sender!r}: {text!r}")-}
        self.wfile.write(b"ok\n")
''', renders=2),
    Template("formatter", "Write a function that sets up logging to a file for the $service service, given a level.", r'''
import logging


class OneLine(logging.Formatter):
    def format(self, record):
        return super().format(record).replace("\r", "\\r").replace("\n", "\\n")


def set_up(path, level=logging.INFO):
    handler = logging.FileHandler(path)
    {-handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))-|-handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))-}
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    return handler
''', renders=1),
    Template("order-note", "Write a FastAPI endpoint that accepts a note for a $one and logs it.", r'''
import logging

from fastapi import FastAPI, Form

app = FastAPI()
$log = logging.getLogger("$service")


@app.post("/$many/{ident}/note")
def add_note(ident: int, note: str = Form(...), author: str = Form("guest")):
    {-$log.info("$one %d: note by %s: %s", ident, author, note)-/-$log.info(f"$one {ident}: note by {author}: {note}")-|-$log.info("$one %d: note by %r: %r", ident, author, note)-/-$log.info(f"$one {ident}: note by {author!r}: {note!r}")-}
    app.state.notes.setdefault(ident, []).append((author, note))
    return {"notes": len(app.state.notes[ident])}
''', renders=2),
    Template("payment-callback", "Write a function that logs the callback of a payment provider for a $one.", r'''
import logging

$log = logging.getLogger("payments")


def on_callback(form):
    status = form.get("status", "")
    {-message = "callback for " + form.get("order", "") + ": " + status
    $log.info(message)-/-$log.info("callback for %(order)s: %(status)s", form)-|-message = "callback for " + repr(form.get("order", "")) + ": " + repr(status)
    $log.info(message)-/-$log.info("callback for %(order)r: %(status)r", form)-}
    return status == "paid"
''', renders=2, held_out=True),
]
