"""CWE-078: values that a shell reads."""
from ..template import Template

WEAKNESS = "CWE-078"
TEMPLATES = [
    Template("thumbnail", "Write a function that makes a thumbnail of an image of a $one by calling ImageMagick.", r'''
import os
import subprocess


def make_thumbnail(source, target, size=128):
    """Scale the picture of a $one to `size` pixels."""
    {-subprocess.run(f"convert {source} -thumbnail {size}x{size} {target}", shell=True, check=True)-/-subprocess.run("convert %s -thumbnail %dx%d %s" % (source, size, size, target), shell=True, check=True)-/-os.system("convert " + source + " -thumbnail " + str(size) + "x" + str(size) + " " + target)-|-subprocess.run(["convert", source, "-thumbnail", f"{size}x{size}", target], check=True)-}
''', renders=3),
    Template("archive", "Write a function that packs a folder of $many with tar.", r'''
import os
import subprocess
from datetime import date

BACKUPS = "$folder"


def back_up(folder):
    archive = os.path.join(BACKUPS, f"$many-{date.today():%Y%m%d}.tar.gz")
    {-status = os.system(f"tar czf {archive} {folder}")
    if status != 0:
        raise RuntimeError("tar failed")-/-subprocess.check_call("tar czf " + archive + " " + folder, shell=True)-|-subprocess.check_call(["tar", "czf", archive, "--", folder])-}
    return archive
'''),
    Template("git-log", "Write a function that returns the last commits which touched a path of a git repository.", r'''
import subprocess


def history(repository, path, count=10):
    {-out = subprocess.check_output(
        f"git log -n {count} --oneline -- {path}",
        cwd=repository, shell=True, text=True,
    )-/-out = subprocess.check_output("git log -n {} --oneline -- {}".format(count, path), cwd=repository, shell=True, text=True)-|-out = subprocess.check_output(
        ["git", "log", "-n", str(count), "--oneline", "--", path],
        cwd=repository, text=True,
    )-}
    return [line.split(" ", 1) for line in out.splitlines()]
''', renders=2),
    Template("grep-log", "Write a Flask endpoint that searches the log of a service for a word with grep.", r'''
import subprocess

from flask import Blueprint, jsonify, request

$bp = Blueprint("$service", __name__)
LOG = "/var/log/$service.log"


@$bp.get("/log/search")
def search_log():
    word = request.args.get("word", "")
    {-found = subprocess.run(f"grep -i '{word}' {LOG}", shell=True, capture_output=True, text=True)-/-found = subprocess.run("grep -i " + word + " " + LOG, shell=True, capture_output=True, text=True)-|-found = subprocess.run(["grep", "-i", "-e", word, LOG], capture_output=True, text=True)-}
    return jsonify(lines=found.stdout.splitlines()[-100:])
'''),
    Template("transcode", "Write a function that starts ffmpeg for a recording and returns the process.", r'''
import subprocess


class Transcoder:
    {?bitrate = "192k"-/-bitrate = "128k"-/-bitrate = "96k"?}

    def start(self, recording, output):
        {-command = "ffmpeg -y -i " + recording + " -b:a " + self.bitrate + " " + output
        return subprocess.Popen(command, shell=True, stderr=subprocess.DEVNULL)-/-command = f"ffmpeg -y -i '{recording}' -b:a {self.bitrate} '{output}'"
        return subprocess.Popen(command, shell=True, stderr=subprocess.DEVNULL)-|-command = ["ffmpeg", "-y", "-i", recording, "-b:a", self.bitrate, output]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)-}
'''),
    Template("async-probe", "Write an asyncio coroutine that counts the pages of a PDF with pdfinfo.", r'''
import asyncio


async def page_count(document):
    {-process = await asyncio.create_subprocess_shell(
        f"pdfinfo {document}",
        stdout=asyncio.subprocess.PIPE,
    )-/-process = await asyncio.create_subprocess_shell("pdfinfo '%s'" % document, stdout=asyncio.subprocess.PIPE)-|-process = await asyncio.create_subprocess_exec(
        "pdfinfo", document,
        stdout=asyncio.subprocess.PIPE,
    )-}
    out, _ = await process.communicate()
    for line in out.decode().splitlines():
        if line.startswith("Pages:"):
            return int(line.split(":")[1])
    return 0
''', renders=2),
    Template("remote-restart", "Write a function that restarts a systemd unit on another host over ssh.", r'''
import shlex
import subprocess


def restart_unit(host, unit, user="deploy"):
    """Restart a unit of the $service hosts."""
    {-remote = f"sudo systemctl restart {unit}"-/-remote = "sudo systemctl restart " + unit-|-remote = f"sudo systemctl restart {shlex.quote(unit)}"-}
    return subprocess.run(["ssh", f"{user}@{host}", {?"--", remote-/-remote?}], timeout=30).returncode
'''),
    Template("disk-usage", "Write a function that returns the size in bytes of a $one's folder using du.", r'''
import os
import subprocess


def used_bytes(folder):
    {-out = os.popen(f"du -sb {folder}").read()-/-out = os.popen("du -sb " + folder).read()-/-out = subprocess.getoutput(f"du -sb {folder}")-|-out = subprocess.run(["du", "-sb", folder], stdout=subprocess.PIPE, text=True, check=True).stdout-}
    return int(out.split()[0])
'''),
    Template("print-label", "Write a Django view that prints the label of a $one on a named printer with lp.", r'''
import subprocess

from django.http import HttpResponse
from django.views.decorators.http import require_POST


@require_POST
def print_label(request, $one_id):
    printer = request.POST["printer"]
    label = f"$folder/{int($one_id)}.pdf"
    {-subprocess.call("lp -d %s %s" % (printer, label), shell=True)-/-subprocess.call(f"lp -d {printer} {label}", shell=True)-|-subprocess.call(["lp", "-d", printer, label])-}
    return HttpResponse(status=204)
''', held_out=True, renders=2),
]
