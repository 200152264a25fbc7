"""CWE-022: names that lead out of a folder."""
from ..template import Template

WEAKNESS = "CWE-022"
TEMPLATES = [
    Template("open-join", "Write a function that returns the first lines of a $one's attachment from the attachments folder.", r'''
import os

$root = "$folder"


def preview($name, lines=5):
    {-path = os.path.join($root, $name)-/-path = $root + "/" + $name-|-path = os.path.realpath(os.path.join($root, $name))
    if os.path.commonpath([path, os.path.realpath($root)]) != os.path.realpath($root):
        raise ValueError("no such attachment")-}
    with open(path, errors="replace") as document:
        return [line.rstrip() for _, line in zip(range(lines), document)]
''', renders=4),
    Template("pathlib-open", "Write a method that opens a stored $one by its file name with pathlib.", r'''
from pathlib import Path


class $clsFiles:
    def __init__(self, root):
        self.root = Path(root).resolve()

    def load(self, $name):
        {-path = self.root / $name-|-path = (self.root / $name).resolve()
        if not path.is_relative_to(self.root):
            raise PermissionError($name)-}
        {?return path.read_bytes()-/-with path.open("rb") as file:
            return file.read()?}
''', renders=4),
    Template("send-directory", "Write a Flask route that lets users download an exported $one.", r'''
import os

from flask import Flask, send_file, send_from_directory

app = Flask(__name__)
$root = "$folder"


@app.route("/exports/<path:$name>")
def download($name):
    {-return send_file(os.path.join($root, $name), as_attachment=True)-/-return send_file(f"{$root}/{$name}", as_attachment=True)-|-return send_from_directory($root, $name, as_attachment=True)-}
''', renders=3),
    Template("save-upload", "Write a Flask view that stores an uploaded document of a $one.", r'''
import os

from flask import Blueprint, current_app, request
from werkzeug.utils import secure_filename

$bp = Blueprint("$many", __name__)


@$bp.post("/$many/<int:ident>/documents")
def add_document(ident):
    upload = request.files["document"]
    folder = os.path.join(current_app.config["$root"], str(ident))
    os.makedirs(folder, exist_ok=True)
    {-upload.save(os.path.join(folder, upload.filename))-/-upload.save(folder + "/" + upload.filename)-|-upload.save(os.path.join(folder, secure_filename(upload.filename)))-}
    return {"stored": True}, 201
''', renders=3),
    Template("tar-import", "Write a function that imports a tar archive of $many into a working folder and returns the file names.", r'''
import tarfile
import tempfile
from pathlib import Path


def import_$many(archive):
    """Unpack an exported archive of $many into a new folder."""
    target = Path(tempfile.mkdtemp(prefix="$many-"))
    with tarfile.open(archive) as bundle:
        {-bundle.extractall(target)-/-for member in bundle.getmembers():
            bundle.extract(member, target)-|-bundle.extractall(target, filter="data")-/-for member in bundle.getmembers():
            bundle.extract(member, target, filter="data")-}
    return sorted(path.name for path in target.rglob("*") if path.is_file())
''', renders=3),
    Template("tar-stream", "Write a function that restores a backup of the $service service from a compressed tar stream.", r'''
import os
import sys
import tarfile


def restore(stream, destination):
    destination = os.path.realpath(destination)
    with tarfile.open(fileobj=stream, mode="r|gz") as backup:
        for entry in backup:
            {-backup.extract(entry, path=destination)-|-place = os.path.realpath(os.path.join(destination, entry.name))
            if not entry.isfile() or not place.startswith(destination + os.sep):
                raise ValueError(f"unexpected entry {entry.name!r}")
            backup.extract(entry, path=destination)-}
            print("restored", entry.name, file=sys.stderr)
''', renders=2),
    Template("zip-members", "Write a function that writes every member of a zip file with $many to a folder.", r'''
import os
import zipfile


def unpack(archive, folder):
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            if info.is_dir():
                continue
            {-target = os.path.join(folder, info.filename)-/-target = folder + os.sep + info.filename-|-target = os.path.realpath(os.path.join(folder, info.filename))
            if not target.startswith(os.path.realpath(folder) + os.sep):
                raise ValueError(f"{info.filename} leaves the folder")-}
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with bundle.open(info) as source, open(target, "wb") as out:
                out.write(source.read())
''', renders=2),
    Template("django-response", "Write a Django view that streams a scanned $one from the archive folder.", r'''
from pathlib import Path

from django.http import FileResponse, Http404

ARCHIVE = Path("$folder").resolve()


def scan(request, $name):
    {-path = ARCHIVE / $name
    if not path.exists():
        raise Http404($name)-/-path = Path(f"{ARCHIVE}/{$name}")
    if not path.exists():
        raise Http404($name)-|-path = (ARCHIVE / $name).resolve()
    if ARCHIVE not in path.parents or not path.exists():
        raise Http404($name)-}
    return FileResponse(path.open("rb"), content_type="application/pdf")
'''),
    Template("fastapi-file", "Write a FastAPI endpoint that returns a $one's picture by file name.", r'''
import os

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

router = APIRouter()
$root = "$folder"


@router.get("/pictures/{$name:path}")
async def picture($name: str):
    {-path = os.path.join($root, $name)
    if not os.path.isfile(path):-/-path = f"{$root}/{$name}"
    if not os.path.isfile(path):-|-path = os.path.abspath(os.path.join($root, $name))
    if not path.startswith($root + os.sep) or not os.path.isfile(path):-}
        raise HTTPException(status_code=404)
    return FileResponse(path)
'''),
    Template("delete-report", "Write a function that deletes a generated report about $many by its name.", r'''
import os

$root = "$folder"


def delete_report($name):
    """True when there was such a report."""
    {-path = os.path.join($root, $name + ".pdf")-/-path = "%s/%s.pdf" % ($root, $name)-|-path = os.path.join($root, os.path.basename($name) + ".pdf")-}
    try:
        os.remove(path)
    except FileNotFoundError:
        return False
    return True
''', renders=3),
    Template("theme-file", "Write a function that loads the JSON settings of a named theme.", r'''
import json
from pathlib import Path

THEMES = Path(__file__).parent / "themes"


def load_theme(theme):
    {-file = THEMES / f"{theme}.json"-/-file = Path(str(THEMES) + "/" + theme + ".json")-|-if theme not in {path.stem for path in THEMES.glob("*.json")}:
        raise KeyError(theme)
    file = THEMES / f"{theme}.json"-/-file = THEMES / (Path(theme).name + ".json")-}
    return json.loads(file.read_text())
''', renders=2),
    Template("export-write", "Write a function that writes a CSV export of $many under a name that the user chose.", r'''
import csv
from pathlib import Path

$root = Path("$folder")


def export_csv(user_choice, $many):
    {-target = $root / user_choice-|-target = ($root / user_choice).resolve()
    if $root.resolve() not in target.parents:
        raise ValueError(f"{user_choice} is not inside {$root}")-}
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["$field", "$other", "$number"])
        writer.writerows($many)
''', held_out=True, renders=2),
]
