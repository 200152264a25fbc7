"""The images, built, and Pods of them, those of `minimal` and one of etcd, started: where buildah and podman are."""

import copy
import json
import re
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import podman
from container import PATIENCE_SECONDS, free_ports
from rendered import Overlay, Workload, image_name

pytestmark = pytest.mark.skipif(podman.missing() is not None, reason=str(podman.missing()))

NOBODY = 65532


@pytest.fixture(scope="module")
def minimal() -> Overlay:
    return Overlay("minimal")


def alone(etcd: Workload) -> Workload:
    """A member of etcd as a cluster of its own, which needs no certificates."""
    changed = Workload(copy.deepcopy(etcd.object))
    changed.pod["volumes"] = [{"name": "data", "emptyDir": {}}]
    container = changed.container
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
    kept = [arg for arg in container["args"] if not re.search("cert|-file=|initial-cluster=", arg)]
    kept.append("--initial-cluster=$(POD_NAME)=https://$(POD_NAME).etcd:2380")
    container["args"] = [arg.replace("$(POD_NAME).etcd", "0.0.0.0").replace("https:", "http:") for arg in kept]
    return changed


@pytest.fixture(scope="module")
def workloads(minimal, production) -> list[Workload]:
    (etcd,) = (workload for workload in production.workloads if workload.name == "etcd")
    return [*minimal.workloads, alone(etcd)]


@pytest.fixture(scope="module")
def store(workloads, pytestconfig):
    """Every image that the workloads name."""
    # Not in pytest's folder: podman wants a short path.
    store = podman.Store(Path(tempfile.mkdtemp(prefix="cosec-")), compiles=pytestconfig.getoption("compile"))
    try:
        for image in {container["image"] for workload in workloads for container in workload.containers}:
            store.build_target(image_name(image).removeprefix("cosec-"), f"localhost/{image}")
        yield store
    finally:
        store.remove()


@pytest.fixture(scope="module")
def ports(minimal, workloads, store):
    """A Pod of every workload; ports of 127.0.0.1 by workload and name."""
    ports = {workload.name: free_ports(workload) for workload in workloads}
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
        list(threads.map(play, workloads))
    return ports


def test_images_hold_their_program_and_little_else(store):
    base = store.image_bytes(podman.BASE)
    for program in ("cosec-coordinator", "cosec-worker"):
        added = store.image_bytes(f"localhost/{program}:0.1.0") - base
        size = store.file_bytes(f"localhost/{program}:0.1.0", f"/usr/local/bin/{program}")
        print(f"{program}: {added / 1e6:.1f} MB on a base of {base / 1e6:.1f} MB")
        assert size <= added < size + 1_000_000


def test_the_same_sources_make_the_same_images(store):
    for program in ("coordinator", "worker"):
        again = f"localhost/cosec-{program}:again"
        # Files are as new as this build.
        for built in (store.folder / f"cosec-{program}").rglob("*"):
            built.touch()
        store.build_target(program, again)
        assert store.image_digest(again) == store.image_digest(f"localhost/cosec-{program}:0.1.0"), program


def wait_until_answered(url: str, workloads: list[Workload], store: podman.Store) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            logs = [store.run("podman", "logs", f"{w.name}-{w.container['name']}") for w in workloads]
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)


def test_pods_answer_a_completion(minimal, store, ports):
    url = f"http://127.0.0.1:{ports['coordinator']['http']}"
    wait_until_answered(f"{url}/health/ready", minimal.workloads, store)
    body = {"model": "demo", "prompt": "import os\n", "max_tokens": 12, "seed": 3, "cosec": {"report": True}}
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
        told = json.load(answer)
    assert told["usage"]["completion_tokens"] == 12 and told["choices"][0]["text"]


def test_etcd_is_well(workloads, store, ports):
    wait_until_answered(f"http://127.0.0.1:{ports['etcd']['metrics']}/health", workloads[-1:], store)


def test_containers_may_do_nothing_more_than_they_need(workloads, store, ports):
    for workload in workloads:
        told = store.container(workload)
        process = Path("/proc") / str(told["State"]["Pid"])
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split() == status["Gid"].split() == [str(NOBODY)] * 4, workload.name
        assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")), workload.name
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), workload.name
        mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
        options = {target: flags.split(",") for _, target, _, flags, *_ in mounts}
        read_only = [mount["mountPath"] for mount in workload.container["volumeMounts"] if mount.get("readOnly")]
        assert all("ro" in options[path] for path in ["/", *read_only]), workload.name


def test_containers_end_well_on_their_stop_signal(workloads, store, ports):
    for workload in workloads:
        container = f"{workload.name}-{workload.container['name']}"
        store.run("podman", "stop", "--time", str(PATIENCE_SECONDS), container)
        state = store.container(workload)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0), store.run("podman", "logs", container)
