"""CWE-209: errors that tell a client how the inside looks."""
from ..template import Template

WEAKNESS = "CWE-209"
TEMPLATES = [
    Template("graphql-errors", "Write a function that formats the errors of a GraphQL answer about $many for clients.", r'''
import logging
import traceback

$log = logging.getLogger("$service.graphql")


def client_error(path, run):
    try:
        return {"data": run(), "errors": []}
    except Exception as $exc:
        {-return {"data": None, "errors": [{"path": path, "message": str($exc), "stack": traceback.format_exc().splitlines()}]}-/-return {"data": None, "errors": [{"path": path, "message": repr($exc)}]}-|-$log.exception("resolving %r failed", path)
        return {"data": None, "errors": [{"path": path, "message": "this field could not be resolved"}]}-}
''', renders=2),
    Template("flask-handler", "Write a Flask error handler for unexpected exceptions that returns JSON.", r'''
import logging
import traceback

from flask import Flask, jsonify

app = Flask(__name__)
$log = logging.getLogger("$service")


@app.errorhandler(Exception)
def unexpected($exc):
    {-return jsonify(error=str($exc), trace=traceback.format_exc()), 500-/-return jsonify(error=repr($exc)), 500-/-$log.exception("unexpected")
    return jsonify(error=f"{type($exc).__name__}: {$exc}"), 500-|-$log.exception("unexpected")
    return jsonify(error="internal error"), 500-}
'''),
    Template("django-view", "Write a Django view that imports $many from an uploaded JSON file and reports failures.", r'''
import json
import logging

from django.http import JsonResponse

from .importing import store

$log = logging.getLogger(__name__)


def import_$many(request):
    try:
        stored = store(json.load(request.FILES["file"]))
    except Exception as $exc:
        {-return JsonResponse({"error": str($exc)}, status=500)-/-return JsonResponse({"error": "import failed: %s" % $exc}, status=500)-|-$log.exception("import of $many failed")
        return JsonResponse({"error": "the import failed"}, status=500)-}
    return JsonResponse({"stored": stored})
'''),
    Template("fastapi-lookup", "Write a FastAPI endpoint that returns a $one from the database and turns errors into a 500.", r'''
import logging

from fastapi import APIRouter, HTTPException, Request

router = APIRouter()
$log = logging.getLogger("$service.api")


@router.get("/$many/{ident}")
async def get_$one(request: Request, ident: int):
    try:
        return await request.app.state.store.get(ident)
    except Exception as $exc:
        {-raise HTTPException(status_code=500, detail=str($exc))-/-raise HTTPException(500, f"database error: {$exc!r}")-|-$log.exception("reading $one %d failed", ident)
        raise HTTPException(status_code=500, detail="internal error") from $exc-/-$log.error("reading $one %d failed", ident, exc_info=$exc)
        raise HTTPException(500, "internal error") from $exc-}
'''),
    Template("http-server", "Write a request handler with http.server that serves a $one as JSON and answers errors.", r'''
import json
import logging
import traceback
from http.server import BaseHTTPRequestHandler

from .store import load_$one


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            body = json.dumps(load_$one(self.path.strip("/"))).encode()
            self.send_response(200)
        except Exception:
            {-body = traceback.format_exc().encode()-|-logging.exception("GET %r", self.path)
            body = b"internal error"-}
            self.send_response(500)
        self.end_headers()
        self.wfile.write(body)
''', renders=2),
    Template("login-error", "Write a login function for an API that returns a message for the client.", r'''
from .accounts import accounts, password_matches


def login(name, password):
    account = accounts.get(name)
    {-if account is None:
        return 401, {"error": f"there is no account {name}"}
    if not password_matches(account, password):
        return 401, {"error": "the password is wrong"}-/-if account is None:
        return 404, {"error": "unknown user"}
    if not password_matches(account, password):
        return 401, {"error": f"wrong password for {account.email}"}-|-if account is None or not password_matches(account, password):
        return 401, {"error": "login or password is wrong"}-}
    return 200, {"$one": account.$one}
''', renders=2),
    Template("query-error", "Write an aiohttp handler that runs a search over $many and answers database errors.", r'''
import logging
import sqlite3

from aiohttp import web

$log = logging.getLogger(__name__)


async def search(request):
    try:
        found = request.app["store"].search(request.query["q"])
    except sqlite3.Error as $exc:
        {-return web.json_response({"error": str($exc), "query": request.app["store"].last_query}, status=500)-/-return web.Response(text=f"Database said: {$exc}", status=500)-|-$log.exception("search failed")
        return web.json_response({"error": "search is not available"}, status=500)-/-$log.exception("search failed")
        return web.Response(text="Search is not available", status=500)-}
    return web.json_response(found)
''', renders=2, held_out=True),
]
