"""CWE-502: objects made from bytes that anyone can write."""
from ..template import Template

WEAKNESS = "CWE-502"
TEMPLATES = [
    Template("wizard-state", "Write functions that keep the answers of a form with several pages in a hidden field.", r'''
import base64
import json
import pickle


def hidden_value(answers):
    {-return base64.urlsafe_b64encode(pickle.dumps(answers)).decode()-|-return base64.urlsafe_b64encode(json.dumps(answers).encode()).decode()-}


def answers_of(value):
    if not value:
        return {}
    {-return pickle.loads(base64.urlsafe_b64decode(value))-|-return json.loads(base64.urlsafe_b64decode(value))-}
''', renders=2),
    Template("yaml-config", "Write a function that reads the YAML settings of the $service service.", r'''
import yaml

DEFAULTS = {"workers": 4, "timeout": 30}


def read_settings(path):
    """The file's settings over the defaults."""
    with open(path) as file:
        {-settings = yaml.load(file, Loader=yaml.Loader)-/-settings = yaml.load(file, Loader=yaml.UnsafeLoader)-/-settings = yaml.unsafe_load(file)-|-settings = yaml.safe_load(file)-/-settings = yaml.load(file, Loader=yaml.SafeLoader)-}
    return DEFAULTS | (settings or {})
''', renders=3),
    Template("yaml-upload", "Write a Flask endpoint that accepts a YAML list of $many and returns how many there are.", r'''
import yaml
from flask import Flask, abort, request

app = Flask(__name__)


@app.post("/$many/import")
def import_$many():
    try:
        {-entries = yaml.load(request.get_data(), Loader=yaml.FullLoader)-/-entries = list(yaml.load_all(request.get_data(), Loader=yaml.Loader))-|-entries = yaml.safe_load(request.get_data())-/-entries = list(yaml.safe_load_all(request.get_data()))-}
    except yaml.YAMLError as $exc:
        abort(400, description="not YAML")
    return {"imported": len(entries)}
'''),
    Template("redis-cache", "Write a small cache class that keeps $many in Redis.", r'''
import json
import pickle


class $clsCache:
    def __init__(self, redis, ttl=600):
        self.redis, self.ttl = redis, ttl

    def put(self, key, $one):
        {-self.redis.set(f"$one:{key}", pickle.dumps($one), ex=self.ttl)-|-self.redis.set(f"$one:{key}", json.dumps($one), ex=self.ttl)-}

    def get(self, key):
        raw = self.redis.get(f"$one:{key}")
        {-return pickle.loads(raw) if raw is not None else None-/-return None if raw is None else pickle.loads(raw)-|-return json.loads(raw) if raw is not None else None-/-return None if raw is None else json.loads(raw)-}
'''),
    Template("socket-message", "Write a socketserver handler for a service that receives $many and adds them to a list.", r'''
import json
import pickle
import socketserver

received = []


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        length = int.from_bytes(self.rfile.read(4), "big")
        {?message = self.rfile.read(length)-/-message = self.rfile.read(min(length, 65536))?}
        {-received.append(pickle.loads(message))-/-$one = pickle.loads(message)
        received.append($one)-|-received.append(json.loads(message))-/-$one = json.loads(message)
        received.append($one)-}
        self.wfile.write(b"ok\n")
''', renders=2),
    Template("torch-checkpoint", "Write a function that loads a model checkpoint which a user uploaded into a PyTorch module.", r'''
import torch


def restore_weights(module, path, device="cpu"):
    {-state = torch.load(path, map_location=device, weights_only=False)-|-state = torch.load(path, map_location=device, weights_only=True)-}
    {?module.load_state_dict(state["model"])-/-module.load_state_dict(state)?}
    return module.eval()
''', renders=2),
    Template("numpy-array", "Write a function that reads measurements of a $one from an .npy file sent by a client.", r'''
import io

import numpy as np


def read_measurements($payload):
    {-array = np.load(io.BytesIO($payload), allow_pickle=True)-|-array = np.load(io.BytesIO($payload), allow_pickle=False)-}
    if array.ndim != {?1-/-2?}:
        raise ValueError(f"unexpected shape {array.shape}")
    return array.astype(float)
''', renders=2),
    Template("queue-worker", "Write a worker function which takes the next $one off a message queue and handles it.", r'''
import json
import pickle


def handle_next(channel, handlers):
    """Take one message off the queue of $many; False when there is none."""
    method, _, $payload = channel.basic_get("$many")
    if method is None:
        return False
    {-task = pickle.loads($payload)-/-kind, arguments = pickle.loads($payload)
    task = {"kind": kind, "arguments": arguments}-|-task = json.loads($payload)-/-kind, arguments = json.loads($payload)
    task = {"kind": kind, "arguments": arguments}-}
    handlers[task["kind"]](**task["arguments"])
    channel.basic_ack(method.delivery_tag)
    return True
''', renders=2, held_out=True),
]
