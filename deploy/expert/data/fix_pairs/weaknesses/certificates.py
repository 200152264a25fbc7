"""CWE-295: peers whose certificate or key nobody checks."""
from ..template import Template

WEAKNESS = "CWE-295"
TEMPLATES = [
    Template("imap-idle", "Write a function that counts unread mails about $many over IMAP with TLS.", r'''
import imaplib
import ssl


def unread(host, user, password, mailbox="$title"):
    {-context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE-/-context = ssl._create_unverified_context()-|-context = ssl.create_default_context()-}
    with imaplib.IMAP4_SSL(host, ssl_context=context) as server:
        server.login(user, password)
        server.select(mailbox, readonly=True)
        _, found = server.search(None, "UNSEEN")
    return len(found[0].split())
''', renders=2),
    Template("postgres-mode", "Write a function that opens the PostgreSQL database of the $service service over the network.", r'''
import os

import psycopg


def open_database(host):
    return psycopg.connect(
        host=host,
        dbname="$service",
        user=os.environ["PGUSER"],
        password=os.environ["PGPASSWORD"],
        {-sslmode="require",-/-sslmode="prefer",-|-sslmode="verify-full",
        sslrootcert="/etc/ssl/certs/ca-certificates.crt",-}
    )
''', renders=2),
    Template("requests-get", "Write a function that fetches the list of $many from the $service service with requests.", r'''
import requests

BASE = "https://$service.internal/api/v1"


def fetch_$many(token, page=1):
    $res = requests.get(
        f"{BASE}/$many",
        params={"page": page},
        headers={"Authorization": f"Bearer {token}"},
        timeout=10,
        {-verify=False,-|-verify="/etc/ssl/certs/ca-certificates.crt",-/-verify=True,-}
    )
    $res.raise_for_status()
    return $res.json()
'''),
    Template("requests-session", "Write a client class for the $service service that keeps a requests session.", r'''
import requests


class $clsClient:
    def __init__(self, base_url, ca_bundle=None):
        self.base_url = base_url.rstrip("/")
        self.session = requests.Session()
        {-self.session.verify = False-/-requests.packages.urllib3.disable_warnings()
        self.session.verify = False-|-self.session.verify = ca_bundle or True-}

    def $one(self, ident):
        return self.session.get(f"{self.base_url}/$many/{ident}", timeout=5).json()
''', renders=2),
    Template("urlopen-context", "Write a function that downloads a $one's data over HTTPS with urllib.", r'''
import json
import ssl
import urllib.request


def download($url):
    {-context = ssl._create_unverified_context()-/-context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE-|-context = ssl.create_default_context()-}
    with urllib.request.urlopen($url, context=context, timeout=20) as $res:
        return json.load($res)
'''),
    Template("httpx-client", "Write an async function that posts a $one to a partner's API with httpx.", r'''
import httpx


async def push_$one(endpoint, $one):
    async with httpx.AsyncClient({-verify=False, timeout=15-/-timeout=15, verify=False-|-timeout=15-/-timeout=15, verify=True-}) as client:
        $res = await client.post(endpoint, json=$one)
    $res.raise_for_status()
    return $res.json()["id"]
'''),
    Template("aiohttp-session", "Write a coroutine that reads the status page of several hosts with aiohttp.", r'''
import asyncio
import ssl

import aiohttp


async def statuses(hosts):
    {-connector = aiohttp.TCPConnector(ssl=False, limit=20)-/-connector = aiohttp.TCPConnector(verify_ssl=False)-|-connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(), limit=20)-}
    async with aiohttp.ClientSession(connector=connector) as session:
        async def status(host):
            async with session.get(f"https://{host}/status") as $res:
                return host, $res.status
        return dict(await asyncio.gather(*(status(host) for host in hosts)))
''', renders=2),
    Template("smtp-tls", "Write a function that sends a mail through an SMTP server with STARTTLS.", r'''
import smtplib
import ssl


def send(message, host, user, password, port=587):
    with smtplib.SMTP(host, port, timeout=30) as server:
        {-server.starttls(context=ssl._create_unverified_context())-/-server.starttls(context=ssl._create_stdlib_context())-|-server.starttls(context=ssl.create_default_context())-}
        server.login(user, password)
        server.send_message(message)
''', renders=2),
    Template("mqtt", "Write a function that connects a $one to an MQTT broker over TLS.", r'''
import ssl

import paho.mqtt.client as mqtt


def connect_broker(host, client_id, ca="/etc/ssl/certs/ca-certificates.crt"):
    client = mqtt.Client(client_id=client_id)
    {-client.tls_set(ca_certs=ca, cert_reqs=ssl.CERT_NONE)
    client.tls_insecure_set(True)-/-client.tls_set(cert_reqs=ssl.CERT_NONE)-|-client.tls_set(ca_certs=ca, cert_reqs=ssl.CERT_REQUIRED)-}
    client.connect(host, 8883, keepalive=60)
    return client
''', renders=2),
    Template("pool-manager", "Write a function that returns a urllib3 pool for the $service service.", r'''
import certifi
import urllib3


def make_pool(connections=8):
    return urllib3.PoolManager(
        num_pools=connections,
        {-cert_reqs="CERT_NONE",
        assert_hostname=False,-/-cert_reqs="CERT_NONE",-|-cert_reqs="CERT_REQUIRED",
        ca_certs=certifi.where(),-}
    )
''', renders=2, held_out=True),
]
