"""The real programs take the configuration that the manifests give them."""

import os
import re
import selectors
import subprocess
import time
from pathlib import Path

import pytest

from rendered import ROOT, Overlay, Workload

BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PATIENCE_SECONDS = 30


class Container:
    """A workload's program as a process of this machine: its files under `folder`, its ports any free ones."""

    def __init__(self, overlay: Overlay, workload: Workload, folder: Path, extra: str = "") -> None:
        places = {"/models": ROOT / "deploy" / "demo-pair"}
        for path, content in overlay.files(workload):
            places[str(Path(path).parent)] = folder
            for mount, place in places.items():
                content = content.replace(f'"{mount}/', f'"{place}/')
            (folder / Path(path).name).write_text(extra + content)
        environment = {}
        for entry in workload.container["env"]:
            value = entry.get("value", "")
            if entry["name"].endswith("_LISTEN"):
                value = "127.0.0.1:0"
            for mount, place in places.items():
                value = re.sub(rf"^{mount}/", f"{place}/", value)
            environment[entry["name"]] = value
        self.process = subprocess.Popen(
            [BINARIES / workload.program, *workload.container.get("args", [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("w"),
        )
        self.log = folder / "log"
        self.doors = len([name for name in environment if name.endswith("_LISTEN")])

    def said(self) -> list[str]:
        """Lines of standard output until every port is announced, or the program ends."""
        out, deadline = b"", time.monotonic() + PATIENCE_SECONDS
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while out.count(b" on ") < self.doors and ready.select(deadline - time.monotonic()):
                piece = os.read(self.process.stdout.fileno(), 4096)
                if not piece:
                    break
                out += piece
        return out.decode().splitlines()

    def stop(self) -> int:
        """Exit status after SIGTERM, the images' stop signal."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()
            self.process.stdout.close()


def programs(overlay: Overlay) -> list[Workload]:
    return [workload for workload in overlay.workloads if workload.program]


def test_programs_start_with_their_configuration(overlay, tmp_path):
    assert len(programs(overlay)) == 3
    for workload in programs(overlay):
        folder = tmp_path / workload.name
        folder.mkdir()
        container = Container(overlay, workload, folder)
        said = container.said()
        status = container.stop()
        assert len(said) == container.doors, f"{workload.name} says {said} and {container.log.read_text()}"
        assert status == 0, f"{workload.name}: {container.log.read_text()}"


@pytest.mark.parametrize("name", ["coordinator", "base-worker"])
def test_programs_refuse_other_configuration(overlay, tmp_path, name):
    (workload,) = (workload for workload in programs(overlay) if workload.name == name)
    container = Container(overlay, workload, tmp_path, extra="colour = 'blue'\n")
    assert container.said() == []
    assert container.process.wait(PATIENCE_SECONDS) != 0
    container.stop()
    assert "colour" in container.log.read_text()
