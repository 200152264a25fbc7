"""CWE-078: values that a shell reads."""
from ..template import Template

WEAKNESS = "CWE-078"
TEMPLATES = [
    Template("mirror", "Write a function that mirrors a folder of $many to another disk with rsync.", r'''
import os
import subprocess
from datetime import date

MIRRORS = "$folder"


def mirror(folder):
    # One mirror a day.
    target = os.path.join(MIRRORS, date.today().isoformat())
    {-status = os.system(f"rsync -a {folder} {target}")
    if status != 0:
        raise RuntimeError("rsync failed")-/-subprocess.check_call("rsync -a " + folder + " " + target, shell=True)-|-subprocess.check_call(["rsync", "-a", folder, target])-}
    return target
'''),
    Template("journal", "Write a Flask endpoint that shows the last journal entries of a systemd unit.", r'''
import subprocess

from flask import Blueprint, jsonify, request

$bp = Blueprint("$service", __name__)


@$bp.get("/journal")
def journal():
    unit = request.args.get("unit", "$service")
    {-shown = subprocess.run(f"journalctl --no-pager -n 50 -u '{unit}'", shell=True, stdout=subprocess.PIPE, text=True)-/-shown = subprocess.run("journalctl --no-pager -n 50 -u " + unit, shell=True, stdout=subprocess.PIPE, text=True)-|-shown = subprocess.run(["journalctl", "--no-pager", "-n", "50", "-u", unit], stdout=subprocess.PIPE, text=True)-}
    return jsonify(entries=shown.stdout.splitlines())
'''),
    Template("thumbnail", "Write a function that makes a thumbnail of an image of a $one by calling ImageMagick.", r'''
import os
import subprocess


def make_thumbnail(source, target, size=128):
    """Scale the picture of a $one to `size` pixels."""
    {-subprocess.run(f"convert {source} -thumbnail {size}x{size} {target}", shell=True, check=True)-/-subprocess.run("convert %s -thumbnail %dx%d %s" % (source, size, size, target), shell=True, check=True)-/-os.system("convert " + source + " -thumbnail " + str(size) + "x" + str(size) + " " + target)-|-subprocess.run(["convert", source, "-thumbnail", f"{size}x{size}", target], check=True)-}
''', renders=3),
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
