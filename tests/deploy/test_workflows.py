"""The workflows, as far as they can be judged without running."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rendered import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILE = (ROOT / "deploy" / "images" / "Dockerfile").read_text()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.stem)
def test_actionlint_has_nothing_to_say(workflow):
    actionlint = Path(sys.executable).with_name("actionlint")
    judged = subprocess.run([actionlint, "-no-color", workflow], capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout + judged.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.stem)
def test_actions_have_versions(workflow):
    used = re.findall(r"uses: (\S+)", workflow.read_text())
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in used), used


def test_every_image_is_released():
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    first = re.search(r"target: \[(.*)\]", release).group(1)
    shipped = {"coordinator", "worker", "worker-cuda", "demo-pair", "etcd"}
    assert set(first.split(", ")) == shipped <= set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))


def test_what_images_are_built_from_is_pinned_by_the_release():
    """The Dockerfile names its bases by tag, for people; the release builds twice from the digest of one day."""
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+) AS", DOCKERFILE, re.MULTILINE)) - stages
    # That of NVIDIA has its version in its tag.
    for base in bases - {base for base in bases if base.startswith("nvidia/")}:
        assert f"{base}=docker-image://{base}@" in release, base
