"""The images, built, and a Pod of each workload of `minimal`, started: where buildah and podman are."""

import json
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import podman
from container import PATIENCE_SECONDS, free_ports
from rendered import Overlay, image_name

pytestmark = pytest.mark.skipif(podman.missing() is not None, reason=str(podman.missing()))

NOBODY = 65532


@pytest.fixture(scope="module")
def minimal() -> Overlay:
    return Overlay("minimal")


@pytest.fixture(scope="module")
def store(minimal):
    """Every image that `minimal` names."""
    # Not in pytest's folder: podman wants a short path.
    store = podman.Store(Path(tempfile.mkdtemp(prefix="cosec-")))
    try:
        for image in {container["image"] for workload in minimal.workloads for container in workload.containers}:
            store.build_target(image_name(image).removeprefix("cosec-"), f"localhost/{image}")
        yield store
    finally:
        store.remove()


@pytest.fixture(scope="module")
def ports(minimal, store):
    """A Pod of every workload; ports of 127.0.0.1 by workload and name."""
    ports = {workload.name: free_ports(workload) for workload in minimal.workloads}
    # There is no cluster whose DNS could tell.
    addresses = {
        rf"_grpc\._tcp\.{name}\.cosec\.svc\.cluster\.local": f"127.0.0.1:{ports[name]['grpc']}"
        for name in ("base-worker", "expert-worker")
    }
    static = addresses | {'kind = "kubernetes"': 'kind = "static"'}

    def play(workload):
        numbers = ports[workload.name]
        own = {rf"0\.0\.0\.0:{port}\b": f"127.0.0.1:{numbers[name]}" for name, port in workload.ports.items()}
        store.play(minimal, workload, static | own)

    with ThreadPoolExecutor() as threads:
        list(threads.map(play, minimal.workloads))
    return ports


def test_images_hold_their_program_and_little_else(store):
    base = store.image_bytes(podman.BASE)
    for program in ("cosec-coordinator", "cosec-worker"):
        added = store.image_bytes(f"localhost/{program}:0.1.0") - base
        size = (store.folder / program / "usr" / "local" / "bin" / program).stat().st_size
        print(f"{program}: {added / 1e6:.1f} MB on a base of {base / 1e6:.1f} MB")
        assert size <= added < size + 1_000_000


def test_pods_answer_a_completion(minimal, store, ports):
    url = f"http://127.0.0.1:{ports['coordinator']['http']}"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}/health/ready", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            logs = [store.run("podman", "logs", f"{w.name}-{w.container['name']}") for w in minimal.workloads]
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)
    body = {"model": "demo", "prompt": "import os\n", "max_tokens": 12, "seed": 3, "cosec": {"report": True}}
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
        told = json.load(answer)
    assert told["usage"]["completion_tokens"] == 12 and told["choices"][0]["text"]


def test_containers_may_do_nothing_more_than_they_need(minimal, store, ports):
    for workload in minimal.workloads:
        told = store.container(workload)
        process = Path("/proc") / str(told["State"]["Pid"])
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split() == status["Gid"].split() == [str(NOBODY)] * 4, workload.name
        assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")), workload.name
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), workload.name
        mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
        options = {target: flags.split(",") for _, target, _, flags, *_ in mounts}
        assert "ro" in options["/"] and "ro" in options["/models"], workload.name


def test_containers_end_well_on_their_stop_signal(minimal, store, ports):
    for workload in minimal.workloads:
        container = f"{workload.name}-{workload.container['name']}"
        store.run("podman", "stop", "--time", str(PATIENCE_SECONDS), container)
        state = store.container(workload)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0), store.run("podman", "logs", container)
