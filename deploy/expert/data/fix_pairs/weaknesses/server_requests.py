"""CWE-918: requests that the server makes wherever a user says."""
from ..template import Template

WEAKNESS = "CWE-918"
TEMPLATES = [
    Template("calendar", "Write a function that fetches a calendar in iCalendar format from the address that a $one gave.", r'''
import ipaddress
import socket
from urllib.parse import urlparse

import requests


def is_public(host):
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(entry[4][0]).is_global for entry in found)


def fetch_calendar($url):
    {--|-host = urlparse($url).hostname
    if host is None or not is_public(host):
        raise PermissionError($url)
    -}$res = requests.get($url, timeout=5{--|-, allow_redirects=False-})
    $res.raise_for_status()
    return [line for line in $res.text.splitlines() if line.startswith("DTSTART")]
'''),
    Template("relay", "Write a FastAPI endpoint that relays a $one to the partner whose address is in the request.", r'''
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI, HTTPException

app = FastAPI()
PARTNERS = {"hooks.example.com", "events.example.org"}


@app.post("/$many/relay")
async def relay($url: str, $one: dict):
    {-async with httpx.AsyncClient(timeout=10) as client:-|-if urlsplit($url).scheme != "https" or urlsplit($url).hostname not in PARTNERS:
        raise HTTPException(status_code=400, detail="unknown partner")
    async with httpx.AsyncClient(timeout=10) as client:-}
        $res = await client.post($url, json=$one)
    return {"status": $res.status_code}
'''),
    Template("proxy-service", "Write a Flask route that proxies a request to one of our internal services by name.", r'''
import requests
from flask import Blueprint, Response, abort, request

$bp = Blueprint("proxy", __name__)
SERVICES = {
    "$service": "http://$service.internal:8080",
    "metrics": "http://metrics.internal:9090",
}


@$bp.get("/proxy/<name>/<path:rest>")
def proxy(name, rest):
    {-upstream = requests.get(f"http://{name}/{rest}", params=request.args, timeout=10)-/-upstream = requests.get("http://" + name + ".internal/" + rest, params=request.args, timeout=10)-|-if name not in SERVICES:
        abort(404)
    upstream = requests.get(f"{SERVICES[name]}/{rest}", params=request.args, timeout=10)-}
    return Response(upstream.content, status=upstream.status_code)
'''),
    Template("feed-import", "Write a function that imports the $many of a news feed from an address that users enter.", r'''
import urllib.request
from urllib.parse import urlparse

ALLOWED_HOSTS = ("feeds.example.net", "news.example.com")


def import_feed($url, parse):
    """Parse the feed behind the address."""
    {-with urllib.request.urlopen($url, timeout=10) as feed:-|-if urlparse($url).hostname not in ALLOWED_HOSTS:
        raise ValueError(f"no feeds from {$url}")
    with urllib.request.urlopen($url, timeout=10) as feed:-}
        return [entry for entry in parse(feed.read()) if entry.get("$field")]
'''),
    Template("screenshot", "Write a Django view that fetches a page for a link preview and returns its title.", r'''
import ipaddress
import re
import socket
from urllib.parse import urlsplit

import requests
from django.http import HttpResponseBadRequest, JsonResponse


def resolves_to_private(host):
    return not ipaddress.ip_address(socket.gethostbyname(host)).is_global


def preview(request):
    $url = request.GET["$url"]
    {-page = requests.get($url, timeout=3).text-/-page = requests.get(request.GET["$url"], timeout=3, allow_redirects=True).text-|-host = urlsplit($url).hostname
    if host is None or resolves_to_private(host):
        return HttpResponseBadRequest("not a public address")
    page = requests.get($url, timeout=3, allow_redirects=False).text-}
    title = re.search(r"<title>([^<]*)</title>", page)
    return JsonResponse({"title": title.group(1) if title else ""})
'''),
    Template("region-host", "Write a function that asks the API of a $one's region for its $number.", r'''
import requests

REGIONS = {"eu": "https://eu.api.example.com", "us": "https://us.api.example.com"}


def $number_in_region(region, ident):
    {-base = f"https://{region}.api.example.com"-/-base = "https://" + region + "/api"-|-base = REGIONS[region]-/-if region not in REGIONS:
        raise ValueError(f"unknown region {region!r}")
    base = REGIONS[region]-}
    $res = requests.get(f"{base}/$many/{int(ident)}", timeout=5)
    return $res.json()["$number"]
''', held_out=True, renders=2),
    Template("metadata", "Write a function that downloads a $one's document from a link and returns its size in bytes.", r'''
import ipaddress
import socket
import urllib.request
from urllib.parse import urlparse


def document_size(link):
    {--|-host = urlparse(link).hostname or ""
    addresses = {ipaddress.ip_address(entry[4][0]) for entry in socket.getaddrinfo(host, 443)}
    if urlparse(link).scheme not in ("https",) or not all(address.is_global for address in addresses):
        raise ValueError("only public https links")
    -}with urllib.request.urlopen(link, timeout=10) as $res:
        return len($res.read())
''', renders=2),
    Template("aiohttp-check", "Write a coroutine that tells whether a link in a $one still works.", r'''
from urllib.parse import urlsplit

import aiohttp

KNOWN_SITES = frozenset({"docs.example.com", "status.example.com", "$service.example.com"})


async def link_works(link):
    {-timeout = aiohttp.ClientTimeout(total=5)-|-if urlsplit(link).hostname not in KNOWN_SITES:
        return False
    timeout = aiohttp.ClientTimeout(total=5)-}
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with session.head(link) as $res:
            return $res.status < 400
''', renders=2),
]
