"""CWE-377: temporary files whose names others can know first."""
from ..template import Template

WEAKNESS = "CWE-377"
TEMPLATES = [
    Template("mktemp", "Write a function that writes $many to a temporary CSV file and returns its path.", r'''
import csv
import os
import tempfile


def to_temporary_csv($many):
    {-path = tempfile.mktemp(suffix=".csv")
    file = open(path, "w", newline="")-/-path = os.path.join(tempfile.gettempdir(), "$many.csv")
    file = open(path, "w", newline="")-/-path = f"/tmp/$many-{os.getpid()}.csv"
    file = open(path, "w", newline="")-|-handle, path = tempfile.mkstemp(suffix=".csv")
    file = os.fdopen(handle, "w", newline="")-}
    with file:
        csv.writer(file).writerows($many)
    return path
'''),
    Template("scan-copies", "Write a function that has copies of a $one's documents scanned for viruses and returns the verdicts.", r'''
import os
import shutil
import tempfile
from pathlib import Path


def scan_copies(documents, scan):
    {-scratch = "/tmp/$one-scan"
    os.makedirs(scratch, exist_ok=True)-/-scratch = tempfile.mktemp()
    os.mkdir(scratch)-|-scratch = tempfile.mkdtemp(prefix="$one-")-}
    try:
        for document in documents:
            shutil.copy(document, scratch)
        return [scan(path) for path in sorted(Path(scratch).iterdir())]
    finally:
        shutil.rmtree(scratch)
'''),
    Template("download", "Write a function that downloads a file to a temporary place before it is checked.", r'''
import os
import tempfile
import urllib.request


def fetch_for_check(url, check):
    {-path = "/tmp/download.bin"
    urllib.request.urlretrieve(url, path)
    return check(path)-/-path = tempfile.mktemp(".bin")
    urllib.request.urlretrieve(url, path)
    return check(path)-|-with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "download.bin")
        urllib.request.urlretrieve(url, path)
        return check(path)-/-with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        urllib.request.urlretrieve(url, file.name)
        return check(file.name)-}
''', renders=2),
    Template("editor", "Write a function that lets the user edit a text in $EDITOR and returns the new text.", r'''
import os
import subprocess
import tempfile


def edit(text):
    {-path = tempfile.mktemp(suffix=".txt")
    with open(path, "w") as file:
        file.write(text)-/-path = "/tmp/edit-%s.txt" % os.environ.get("USER", "nobody")
    with open(path, "w") as file:
        file.write(text)-|-with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write(text)
        path = file.name-}
    try:
        subprocess.run([os.environ.get("EDITOR", "vi"), path], check=True)
        with open(path) as file:
            return file.read()
    finally:
        os.unlink(path)
''', renders=2),
    Template("lock-file", "Write a context manager that keeps a second instance of the importer for $many from starting.", r'''
import fcntl
import os
import tempfile
from contextlib import contextmanager


@contextmanager
def single_instance(runtime=os.environ.get("XDG_RUNTIME_DIR", "/run/$service")):
    {-path = "/tmp/$many-import.lock"-/-path = tempfile.gettempdir() + "/$many-import.lock"-|-path = os.path.join(runtime, "$many-import.lock")-}
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
''', renders=2),
    Template("upload-spool", "Write a Flask view that spools an uploaded file of $many to disk and imports it.", r'''
import os
import tempfile

from flask import Flask, request

app = Flask(__name__)


@app.post("/$many/upload")
def upload():
    sent = request.files["file"]
    {-path = os.path.join("/tmp", "upload-$many")
    sent.save(path)-/-path = tempfile.mktemp(prefix="upload-")
    sent.save(path)-|-with tempfile.NamedTemporaryFile(prefix="upload-", delete=False) as spool:
        sent.save(spool)
    path = spool.name-}
    try:
        return {"imported": app.import_file(path)}
    finally:
        os.remove(path)
''', renders=2),
    Template("plot", "Write a function that saves a plot of the $number of $many as a PNG in a temporary file.", r'''
import tempfile

import matplotlib.pyplot as plt


def plot_$number($many):
    figure, axes = plt.subplots()
    axes.bar([item["$field"] for item in $many], [item["$number"] for item in $many])
    {-path = "/tmp/$number.png"
    figure.savefig(path)-/-path = tempfile.mktemp(".png")
    figure.savefig(path)-|-with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as image:
        figure.savefig(image)
    path = image.name-}
    plt.close(figure)
    return path
''', renders=2, held_out=True),
]
