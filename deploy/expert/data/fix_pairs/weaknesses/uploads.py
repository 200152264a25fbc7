"""CWE-434: files of any type that are kept where a server hands them out."""
from ..template import Template

WEAKNESS = "CWE-434"
TEMPLATES = [
    Template("flask-photo", "Write a Flask view that accepts a photo of a $one and keeps it under static.", r'''
import os
import uuid

from flask import Flask, abort, request

app = Flask(__name__)
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


@app.post("/$many/<int:ident>/photo")
def add_photo(ident):
    photo = request.files["photo"]
    extension = os.path.splitext(photo.filename)[1].lower()
    {--|-if extension not in PICTURES:
        abort(415)
    -}{?name = f"{uuid.uuid4().hex}{extension}"
    photo.save(os.path.join(app.static_folder, "photos", name))
    return {"photo": name}, 201-/-folder = os.path.join(app.static_folder, "$many", str(ident))
    os.makedirs(folder, exist_ok=True)
    photo.save(os.path.join(folder, "photo" + extension))
    return "", 204-/-target = "photos/%d-%s%s" % (ident, uuid.uuid4().hex[:8], extension)
    photo.save(os.path.join(app.static_folder, target))
    app.logger.info("photo of $one %d", ident)
    return {"photo": target}?}
'''),
    Template("django-form", "Write a Django model for the documents of a $one with a file field.", r'''
from django.core.validators import FileExtensionValidator
from django.db import models


class $clsDocument(models.Model):
    $one = models.ForeignKey("$cls", on_delete=models.CASCADE)
    file = models.FileField(upload_to="documents/"{--|-, validators=[FileExtensionValidator(["pdf", "txt"])]-/-, validators=[FileExtensionValidator(allowed_extensions=["pdf", "png"])]-})
    added = models.DateTimeField(auto_now_add=True)
'''),
    Template("fastapi-upload", "Write a FastAPI endpoint that stores an uploaded CSV file of $many.", r'''
import uuid
from pathlib import Path

from fastapi import APIRouter, HTTPException, UploadFile

router = APIRouter()
STORE = Path("$folder")


@router.post("/$many/files", status_code=201)
async def add_file(file: UploadFile):
    suffix = Path(file.filename).suffix.lower()
    {-target = STORE / (uuid.uuid4().hex + suffix)-/-target = STORE / f"{uuid.uuid4().hex}{suffix}"-|-if suffix != ".csv" or file.content_type not in ("text/csv", "application/vnd.ms-excel"):
        raise HTTPException(status_code=415, detail="CSV files only")
    target = STORE / (uuid.uuid4().hex + suffix)-/-if suffix != ".csv":
        raise HTTPException(status_code=415)
    target = STORE / f"{uuid.uuid4().hex}{suffix}"-}
    target.write_bytes(await file.read())
    return {"stored": target.name}
'''),
    Template("size-limit", "Write a form clean method in Django for the avatar of a $one.", r'''
from django import forms
from PIL import Image


class AvatarForm(forms.Form):
    avatar = forms.FileField()

    def clean_avatar(self):
        avatar = self.cleaned_data["avatar"]
        {-if not avatar.name:
            raise forms.ValidationError("no file")-/-if avatar.size > 10_000_000:
            raise forms.ValidationError("too large")-|-if avatar.size > 2_000_000 or Image.open(avatar).format not in ("PNG", "JPEG"):
            raise forms.ValidationError("a PNG or JPEG of at most 2 MB, please")
        avatar.seek(0)-}
        return avatar
''', renders=2),
    Template("attachment", "Write a function that saves the attachments of a received mail about a $one.", r'''
import uuid
from pathlib import Path

ALLOWED = {"application/pdf": ".pdf", "image/png": ".png", "text/plain": ".txt"}


def save_attachments(message, folder):
    saved = []
    for part in message.iter_attachments():
        {-suffix = Path(part.get_filename() or "").suffix
        target = Path(folder) / f"{uuid.uuid4().hex}{suffix}"-/-target = Path(folder) / (uuid.uuid4().hex + Path(part.get_filename() or "x.bin").suffix)-|-if part.get_content_type() not in ALLOWED:
            continue
        target = Path(folder) / (uuid.uuid4().hex + ALLOWED[part.get_content_type()])-}
        target.write_bytes(part.get_payload(decode=True))
        saved.append(target)
    return saved
''', renders=2),
    Template("aiohttp-upload", "Write an aiohttp handler that receives a picture of a $one in a multipart request.", r'''
import os
import uuid

from aiohttp import web

ALLOWED = (".png", ".jpg", ".gif")


async def receive(request):
    field = await (await request.multipart()).next()
    extension = os.path.splitext(field.filename or "")[1].lower()
    {--|-if extension not in ALLOWED:
        raise web.HTTPUnsupportedMediaType()
    -}path = os.path.join("$folder", uuid.uuid4().hex + extension)
    {?with open(path, "wb") as out:
        while chunk := await field.read_chunk():
            out.write(chunk)-/-content = await field.read(decode=True)
    with open(path, "wb") as out:
        out.write(content)?}
    return web.json_response({"file": os.path.basename(path)})
''', renders=2),
    Template("flask-allowed", "Write a helper for Flask uploads of $many that returns the stored name or None.", r'''
import secrets
from pathlib import Path

ALLOWED_EXTENSIONS = {"xlsx", "ods", "csv"}


def store_upload(upload, folder):
    if not upload or not upload.filename:
        return None
    extension = upload.filename.rsplit(".", 1)[-1].lower()
    {--|-if "." not in upload.filename or extension not in ALLOWED_EXTENSIONS:
        return None
    -}{?name = f"{secrets.token_hex(8)}.{extension}"
    upload.save(Path(folder) / name)
    return name-/-target = Path(folder) / (secrets.token_hex(8) + "." + extension)
    upload.save(target)
    return target.name?}
''', renders=2, held_out=True),
]
