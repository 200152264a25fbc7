"""Starts the demo cluster as processes and hands the official client to the tests."""

import os
import re
import subprocess
import urllib.request
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
START_SECONDS = 180


class Cluster:
    """Addresses of a running demo cluster."""

    def __init__(self, said: str) -> None:
        self.url = self._find(r"serving: (http://\S+)/v1", said)
        self.metrics = self._find(r"coordinator (http://\S+/metrics)", said)
        self.workers = {
            role: self._find(rf"{role} (http://\S+/metrics)", said) for role in ("base", "expert")
        }

    @staticmethod
    def _find(pattern: str, said: str) -> str:
        found = re.search(pattern, said)
        assert found, f"no {pattern!r} in what the demo said:\n{said}"
        return found.group(1)

    def metric(self, url: str, name: str) -> float:
        """The sum over all labels of the metric `name` at `url`."""
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{|\s)", line)]
        assert values, f"{url} has no metric {name}"
        return sum(values)

    def free_blocks(self) -> dict[str, float]:
        """Free cache blocks by role."""
        return {role: self.metric(url, "cosec_worker_blocks_free") for role, url in self.workers.items()}


@pytest.fixture(scope="session")
def cluster():
    """One cluster for all tests; ended by its process id."""
    demo = subprocess.Popen(
        [BINARIES / "cosec-demo", "--port", "0", "--grpc-port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = ""
        for line in demo.stdout:
            said += line
            if line.startswith("stop: "):
                break
        yield Cluster(said)
    finally:
        demo.terminate()
        assert demo.wait(timeout=START_SECONDS) == 0


@pytest.fixture(scope="session")
def client(cluster):
    """The official client, without retries, so that an error is seen as it came."""
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=60)
