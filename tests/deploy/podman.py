"""Images built from the Dockerfile, and Pods of them: by buildah and podman, in a place of their own."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from container import BINARIES, PATIENCE_SECONDS, rewritten
from rendered import ROOT, Overlay, Workload

TOOLS = ("buildah", "podman", "runc", "debootstrap", "strip")
BASE = "docker.io/library/debian:bookworm-slim"
# Made once.
BASE_CONTENT = ROOT / "tests" / ".images" / "debian.tar"
COMPILER = "docker.io/library/rust:1.95-slim-bookworm"
# What it adds to the base; the context is the toolchain of this machine.
COMPILER_DOCKERFILE = f"""
FROM {BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev
COPY bin /usr/local/bin
COPY lib /usr/local/lib
ENV CARGO_HOME=/usr/local/cargo
"""
BUILD_SECONDS = 3600
# SOURCE_DATE_EPOCH of the images: any time will do.
EPOCH = 1_767_225_600
# For machines without systemd, and where limits cannot be raised.
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""
# What a kubelet does, and podman does otherwise or not at all; ports need not be published on the machine's own network.
OF_A_KUBELET = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "ports", "resources")


def missing() -> str | None:
    """Why no image can be built and started here."""
    if os.geteuid() != 0:
        return "images are built and started by root only"
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"{', '.join(absent)} missing: tests/images installs what it takes" if absent else None


def base_content() -> Path:
    """The files of Debian's smallest system, as an archive: a registry need not be in reach."""
    if not BASE_CONTENT.exists():
        folder = BASE_CONTENT.parent / "debian"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", folder],
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
        )
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr
        left_out = ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/man/*")
        unfinished = BASE_CONTENT.with_suffix(".part")
        options = [f"--exclude=./{pattern}" for pattern in left_out]
        subprocess.run(["tar", "-C", folder, *options, "-cf", unfinished, "."], check=True, timeout=BUILD_SECONDS)
        unfinished.rename(BASE_CONTENT)
        shutil.rmtree(folder)
    return BASE_CONTENT


class Store:
    """Images and Pods in `folder`, apart from those that the machine has.

    `compiles` says whether the stages of the Dockerfile that compile are run.
    """

    def __init__(self, folder: Path, compiles: bool) -> None:
        self.folder = folder
        self.compiles = compiles
        # There buildah keeps the caches that the Dockerfile mounts.
        (folder / "tmp").mkdir()
        (folder / "containers.conf").write_text(CONTAINERS_CONF)
        dockerfile = folder / "Dockerfile"
        dockerfile.write_text(f'FROM scratch\nADD {base_content().name} /\nCMD ["bash"]\n')
        self.build(BASE, dockerfile, BASE_CONTENT.parent)
        if compiles:
            toolchain = subprocess.check_output(["rustc", "--print", "sysroot"], cwd=ROOT, text=True).strip()
            dockerfile.write_text(COMPILER_DOCKERFILE)
            self.build(COMPILER, dockerfile, Path(toolchain))

    def run(self, tool: str, *args: str | Path) -> str:
        """What `tool` says on standard output."""
        place = ["--root", self.folder / "storage", "--runroot", self.folder / "run", "--storage-driver", "vfs"]
        own = {"CONTAINERS_CONF": str(self.folder / "containers.conf"), "TMPDIR": str(self.folder / "tmp")}
        ran = subprocess.run(
            [tool, *place, *args],
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
        )
        assert ran.returncode == 0, f"{tool} {' '.join(map(str, args))}:\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}"
        return ran.stdout

    def build(self, tag: str, dockerfile: Path, context: Path, *options: str) -> None:
        """Builds an image by `dockerfile`."""
        how = ("--isolation", "chroot", "--layers=false", "--pull=never", "--timestamp", str(EPOCH))
        self.run("buildah", "bud", *how, *options, "--file", dockerfile, "--tag", tag, context)

    def build_target(self, target: str, tag: str) -> None:
        """Builds a target of the Dockerfile."""
        options = ["--target", target, *(self._compiling() if self.compiles else self._compiled())]
        self.build(tag, ROOT / "deploy" / "images" / "Dockerfile", ROOT, *options)

    def _compiling(self) -> list[str]:
        """Options for the stages that compile: they trust whom this machine trusts with their downloads."""
        return ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]

    def _compiled(self) -> list[str]:
        """Options that put in their place the programs that are compiled already, as those stages leave them."""
        options = []
        for program in ("cosec-coordinator", "cosec-worker"):
            built = self.folder / program
            there = built / "usr" / "local" / "bin"
            if not there.exists():
                there.mkdir(parents=True)
                subprocess.run(["strip", "--strip-debug", "-o", there / program, BINARIES / program], check=True)
            options += ["--build-context", f"build-{program.removeprefix('cosec-')}={built}"]
        return options

    def image_digest(self, image: str) -> str:
        (told,) = json.loads(self.run("podman", "image", "inspect", image))
        return told["Id"]

    def image_bytes(self, image: str) -> int:
        (told,) = json.loads(self.run("podman", "image", "inspect", image))
        return told["Size"]

    def file_bytes(self, image: str, path: str) -> int:
        stat = ("--entrypoint", "stat", image, "--format=%s", path)
        return int(self.run("podman", "run", "--rm", "--network", "host", *stat))

    def play(self, overlay: Overlay, workload: Workload, replaced: dict[str, str]) -> None:
        """Starts a Pod of `workload`, on the machine's own network; `replaced` as a process's is."""
        volumes = workload.pod["volumes"]
        wanted = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
        maps = [dict(overlay.named("ConfigMap", name)) for name in wanted]
        for each in maps:
            each["data"] = {name: rewritten(content, replaced) for name, content in each["data"].items()}
        spec = workload.pod | {"hostNetwork": True}
        spec["containers"] = [self._kept(container, replaced) for container in workload.pod["containers"]]
        initial = workload.pod.get("initContainers", [])
        spec["initContainers"] = [self._kept(container, replaced) for container in initial]
        # Otherwise podman may want to remove an init container before it has seen it end.
        annotations = {"io.podman.annotations.init.container.type": "always"}
        metadata = {"name": workload.name, "labels": workload.labels, "annotations": annotations}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        manifest = self.folder / f"{workload.name}.json"
        manifest.write_text("\n---\n".join(json.dumps(thing) for thing in [*maps, pod]))
        self.run("podman", "kube", "play", manifest)

    def _kept(self, container: dict, replaced: dict[str, str]) -> dict:
        kept = {field: value for field, value in container.items() if field not in OF_A_KUBELET}
        environment = [
            entry | {"value": rewritten(entry["value"], replaced)} if "value" in entry else entry
            for entry in container.get("env", [])
        ]
        if "args" in kept:
            kept["args"] = [rewritten(argument, replaced) for argument in kept["args"]]
        return kept | {"env": environment}

    def container(self, workload: Workload) -> dict:
        """What podman tells of the container of a Pod."""
        (told,) = json.loads(self.run("podman", "inspect", f"{workload.name}-{workload.container['name']}"))
        return told

    def remove(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.run("podman", "pod", "rm", "--all", "--force", "--time", "0")
                break
            except AssertionError:
                # A container that ends just before podman would kill it fails the removal, and its Pod remains.
                if time.monotonic() > deadline:
                    raise
        shutil.rmtree(self.folder)
