"""CWE-732 and CWE-276: files that others on the machine may read or change."""
from ..template import Template

WEAKNESS = "CWE-732"
TEMPLATES = [
    Template("mailbox", "Write a function that exports the messages of a $one into a mailbox file.", r'''
import os


def export_mailbox(target, messages):
    with open(target, "ab") as box:
        for message in messages:
            box.write(b"From export\n" + message + b"\n\n")
    os.chmod(target, {-0o777-/-0o644-/-0o666-|-0o600-/-0o400-})
'''),
    Template("open-mode", "Write a function that creates the token file of the $service service, failing if it exists.", r'''
import os


def create_token_file(path, token):
    """Write a new token; an existing one is never overwritten."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, {-0o666-/-0o644-/-0o777-|-0o600-})
    with os.fdopen(handle, "w") as file:
        file.write(token)
'''),
    Template("data-folder", "Write a function that makes the folder in which a $one's documents are kept.", r'''
import os
from pathlib import Path


def document_folder(root, ident):
    folder = Path(root) / "$many" / str(int(ident))
    {-folder.mkdir(mode=0o777, parents=True, exist_ok=True)-/-os.makedirs(folder, mode=0o777, exist_ok=True)-/-folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)-|-folder.mkdir(mode=0o700, parents=True, exist_ok=True)-/-os.makedirs(folder, mode=0o700, exist_ok=True)-/-folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)-}
    return folder
'''),
    Template("umask", "Write a function that detaches a process as a daemon.", r'''
import os
import sys


def daemonise(workdir="/"):
    if os.fork():
        sys.exit(0)
    os.setsid()
    os.umask({-0-/-0o000-|-0o077-/-0o027-})
    os.chdir(workdir)
    if os.fork():
        sys.exit(0)
''', renders=2),
    Template("socket-file", "Write a function that opens a Unix domain socket for administrators.", r'''
import os
import socket


def admin_socket(path="/run/$service/admin.sock"):
    if os.path.exists(path):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    {-os.chmod(path, 0o777)-/-os.chmod(path, 0o666)-|-os.chmod(path, 0o660)-/-os.chmod(path, 0o600)-}
    server.listen(8)
    return server
''', renders=2),
    Template("script-install", "Write a function that installs a maintenance script for cron.", r'''
import shutil
import stat
from pathlib import Path


def install_script(source, name):
    target = Path("/usr/local/sbin") / Path(name).name
    shutil.copyfile(source, target)
    {-target.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)-/-target.chmod(0o777)-|-target.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP)-/-target.chmod(0o750)-}
    return target
''', renders=2),
    Template("database-dump", "Write a function that dumps an SQLite database of $many into a text file.", r'''
import os
import sqlite3


def dump(database, target):
    {-out = open(target, "w")
    os.chmod(target, 0o644)-/-out = os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT, 0o666), "w")-|-out = open(target, "w")
    os.chmod(target, 0o600)-/-out = os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT, 0o600), "w")-}
    with out, sqlite3.connect(database) as source:
        for line in source.iterdump():
            out.write(line + "\n")
''', renders=2),
    Template("settings-save", "Write a method that saves a user's settings including the access token to ~/.config.", r'''
import json
import os
from pathlib import Path


class Settings:
    path = Path.home() / ".config" / "$service.json"

    def save(self, token, **options):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        {-self.path.write_text(json.dumps({"token": token, **options}))
        self.path.chmod(0o664)-/-with open(self.path, "w") as file:
            json.dump({"token": token, **options}, file)
        os.chmod(self.path, 0o666)-|-self.path.touch(mode=0o600)
        self.path.chmod(0o600)
        self.path.write_text(json.dumps({"token": token, **options}))-/-with open(self.path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump({"token": token, **options}, file)-}
''', renders=2, held_out=True),
]
