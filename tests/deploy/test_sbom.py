"""The SBOMs of the images."""

import importlib.machinery
import importlib.util
import json
import shutil
import subprocess

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from rendered import ROOT

SBOM = ROOT / "deploy" / "images" / "sbom"
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 with lines: that go on

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2025b-0+deb12u1
"""


@pytest.fixture(scope="module")
def sbom():
    loader = importlib.machinery.SourceFileLoader("sbom", str(SBOM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("sbom", loader))
    loader.exec_module(module)
    return module


def made(tmp_path, image: str) -> dict:
    """The SBOM of an image whose system is that of `STATUS`, checked against CycloneDX's schema."""
    (tmp_path / "status").write_text(STATUS)
    output = tmp_path / f"{image}.cdx.json"
    options = ["--version", "0.1.0", "--digest", f"sha256:{'0' * 64}", "--dpkg-status", tmp_path / "status"]
    subprocess.run([SBOM, "--image", image, *options, "--output", output], check=True, cwd=tmp_path)
    problem = JsonStrictValidator(SchemaVersion.V1_5).validate_str(output.read_text())
    assert problem is None, problem
    return json.loads(output.read_text())


def test_packages_of_the_system_are_those_that_are_installed(sbom):
    packages = sbom.system(STATUS, "debian")
    assert [(package["name"], package["version"]) for package in packages] == [
        ("libc6", "2.36-9+deb12u10"),
        ("tzdata", "2025b-0+deb12u1"),
    ]
    assert packages[0]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"


def test_images_without_a_program_of_ours_have_one_too(tmp_path):
    bom = made(tmp_path, "cosec-etcd")
    assert len(bom["components"]) == 2
    assert bom["metadata"]["component"]["hashes"][0]["content"] == "0" * 64


@pytest.mark.skipif(shutil.which("cargo-cyclonedx") is None, reason="tests/setup cargo-cyclonedx installs it")
@pytest.mark.parametrize(("image", "carries"), [("cosec-coordinator", False), ("cosec-worker", True)])
def test_crates_are_those_of_the_program(tmp_path, image, carries):
    components = made(tmp_path, image)["components"]
    names = {component["name"] for component in components}
    assert {image, "tokio", "libc6"} <= names and ("candle-core" in names) == carries
    # Test-only crates are in no image.
    assert not {"proptest", "tempfile", "cosec-tests"} & names
    assert subprocess.run(["git", "status", "--porcelain", "--", "*.cdx.json"], cwd=ROOT, capture_output=True).stdout == b""
