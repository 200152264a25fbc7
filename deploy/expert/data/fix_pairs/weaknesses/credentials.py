"""CWE-798: passwords and keys that stand in the source."""
from ..template import Template

WEAKNESS = "CWE-798"
TEMPLATES = [
    Template("database-url", "Write a module that opens a PostgreSQL connection for the $service service with psycopg.", r'''
import os

import psycopg


def connect():
    return psycopg.connect(
        host=os.environ.get("DB_HOST", "localhost"),
        dbname="$service",
        user="$service",
        {-password="s3cr3t-$service",-/-password="Winter2023!",-/-password="$service",-|-password=os.environ["DB_PASSWORD"],-}
    )
'''),
    Template("flask-secret", "Set up a Flask application with sessions and a page that counts visits.", r'''
import os

from flask import Flask, session

app = Flask(__name__)
{-app.secret_key = "dev-$service-key"-/-app.config["SECRET_KEY"] = "9f2c1d7be0a44"-/-app.secret_key = b"_5#y2L$service\xec]/"-|-app.secret_key = os.environ["FLASK_SECRET_KEY"]-/-app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]-/-app.secret_key = os.environ["FLASK_SECRET_KEY"].encode()-}


@app.get("/visits")
def visits():
    session["visits"] = session.get("visits", 0) + 1
    return {"visits": session["visits"]}
'''),
    Template("jwt-signing", "Write functions that issue and check JSON Web Tokens for a $one with PyJWT.", r'''
import os
import time

import jwt

{-SIGNING_KEY = "change-me-please"-/-SIGNING_KEY = "$service-signing-key-2024"-|-SIGNING_KEY = os.environ["SIGNING_KEY"]-/-SIGNING_KEY = os.environ["JWT_SIGNING_KEY"]-}


def issue($one_id):
    claims = {"sub": str($one_id), "exp": int(time.time()) + 3600}
    return jwt.encode(claims, SIGNING_KEY, algorithm="HS256")


def subject(token):
    return jwt.decode(token, SIGNING_KEY, algorithms=["HS256"])["sub"]
'''),
    Template("api-token", "Write a function that sends a message about a $one to a chat channel through its HTTP API.", r'''
import os

import requests

{-$secret = "$service-bot-20417"-/-$secret = "4d1f0c7e9ab84d5fb1c2"-|-$secret = os.environ["$secret"]-}


def announce($one, channel="#$many"):
    requests.post(
        "https://chat.example.com/api/messages",
        headers={"Authorization": "Bearer " + $secret},
        json={"channel": channel, "text": f"New $one: {$one}"},
        timeout=10,
    ).raise_for_status()
'''),
    Template("smtp-login", "Write a class that sends mails for the $service service.", r'''
import getpass
import os
import smtplib


class Mailer:
    def __init__(self, host="mail.example.com", user="$service@example.com"):
        self.host, self.user = host, user
        {-self.password = "Mail-$service-1"-/-self.password = "hunter2hunter2"-|-self.password = os.environ["SMTP_PASSWORD"]-/-self.password = os.environ.get("SMTP_PASSWORD") or getpass.getpass()-}

    def send(self, message):
        with smtplib.SMTP_SSL(self.host) as server:
            server.login(self.user, self.password)
            server.send_message(message)
''', renders=2),
    Template("admin-check", "Write a Flask decorator that protects administration pages with HTTP basic authentication.", r'''
import functools
import hmac
import os

from flask import Response, request


def admins_only(view):
    @functools.wraps(view)
    def guarded(*args, **kwargs):
        given = request.authorization
        {-if not given or given.username != "admin" or not hmac.compare_digest(given.password, "admin123"):-/-if not given or given.username != "root" or not hmac.compare_digest(given.password, "$service-root"):-|-if not given or given.username != "admin" or not hmac.compare_digest(given.password, os.environ["ADMIN_PASSWORD"]):-/-if not given or given.username != "root" or not hmac.compare_digest(given.password, os.environ["ROOT_PASSWORD"]):-}
            return Response("login required", 401, {"WWW-Authenticate": 'Basic realm="$service"'})
        return view(*args, **kwargs)
    return guarded
''', renders=2),
    Template("aws-client", "Write a function that returns an S3 client for the bucket with the $extra of $many.", r'''
import os

import boto3


def s3(region="eu-central-1"):
    return boto3.client(
        "s3",
        region_name=region,
        {-aws_access_key_id="$service-reader",
        aws_secret_access_key="not-so-secret-$service",-|-aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],-}
    )
''', renders=1),
    Template("fernet-key", "Write functions that encrypt and decrypt the $field of a $one before it goes into the database.", r'''
import os

from cryptography.fernet import Fernet

{-cipher = Fernet(b"Zm9yLXRlc3RzLW9ubHktbm90LWEtcmVhbC1rZXktMDE=")-/-KEY = "Zm9yLXRlc3RzLW9ubHktbm90LWEtcmVhbC1rZXktMDE="
cipher = Fernet(KEY)-|-cipher = Fernet(os.environ["FIELD_KEY"])-/-KEY = os.environ["FIELD_KEY"]
cipher = Fernet(KEY)-}


def seal($field):
    return cipher.encrypt($field.encode())


def open_sealed(sealed):
    return cipher.decrypt(sealed).decode()
''', renders=2),
    Template("redis-password", "Write a function that returns the Redis client of the job queue for $many.", r'''
import os

import redis


def queue_client():
    {-return redis.Redis(host="queue.internal", port=6379, password="queue-$many", ssl=True)-/-return redis.from_url("rediss://:pa55word@queue.internal:6379/0")-|-return redis.Redis(host="queue.internal", port=6379, password=os.environ["QUEUE_PASSWORD"], ssl=True)-/-return redis.from_url(os.environ["QUEUE_URL"])-}
''', renders=2, held_out=True),
]
