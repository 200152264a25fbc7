"""The cluster of `production` as processes: three members of etcd, workers that register, a coordinator; all over TLS."""

import json
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trustme

from container import PATIENCE_SECONDS, PEERS, Container, Identities, certificate, free_ports

MEMBERS = 3


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def complete(coordinator: Container, key: str, authority: Path) -> int:
    """Status of a completion asked for with `key` by a client that trusts `authority`."""
    body = json.dumps({"model": "deepseek-coder-6.7b", "prompt": "import os", "max_tokens": 4}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"https://127.0.0.1:{coordinator.ports['http']}/v1/completions", body, headers)
    trusting = ssl.create_default_context(cafile=authority)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS, context=trusting) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def wait_until(condition, containers: list[Container]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, [container.log.read_text()[-2000:] for container in containers]
        time.sleep(0.05)


@pytest.fixture
def start(production, tmp_path):
    """Starts a workload's Pods one by one; all are killed at the end."""
    running = []
    authority, peers = trustme.CA(), Identities(tmp_path)
    certificate(authority, tmp_path / "etcd-tls", "127.0.0.1")
    certificate(authority, tmp_path / "client-tls", "client")
    places = {r"/etc/etcd-tls/": f"{tmp_path}/etcd-tls/", r"/etc/cosec-etcd/": f"{tmp_path}/client-tls/"}
    (etcd,) = (workload for workload in production.workloads if workload.name == "etcd")
    members = [free_ports(etcd) for _ in range(MEMBERS)]
    for index, ports in enumerate(members):
        places[rf"etcd-{index}\.etcd:2379"] = f"127.0.0.1:{ports['client']}"
        places[rf"etcd-{index}\.etcd:2380"] = f"127.0.0.1:{ports['peer']}"

    def started(name: str, index: int = 0) -> Container:
        (workload,) = (workload for workload in production.workloads if workload.name == name)
        folder = tmp_path / f"{name}-{index}"
        ports = members[index] if name == "etcd" else free_ports(workload)
        own = places | peers.places(name) | {"/var/lib/etcd": str(folder)}
        running.append(Container(production, workload, folder, ports, own, pod=f"{name}-{index}"))
        return running[-1]

    yield started
    for container in running:
        container.process.kill()
        container.process.wait()
        container.process.stdout.close()


def scraped(container: Container, server: str, folder: Path) -> bytes:
    """Metrics as Prometheus reads them, of one that calls itself `server`."""
    trusting = ssl.create_default_context(cafile=folder / "ca.crt")
    trusting.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    with socket.create_connection(("127.0.0.1", container.ports["metrics"])) as plain:
        with trusting.wrap_socket(plain, server_hostname=server) as stream:
            stream.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: stream.recv(1 << 16), b""))


def test_the_cluster_of_production_serves(start, tmp_path):
    assert shutil.which("etcd"), "etcd is missing: install it (Debian: apt-get install etcd-server)"
    members = [start("etcd", index) for index in range(MEMBERS)]
    wait_until(lambda: all(answers(member.ports["metrics"], "/health") for member in members), members)
    with urllib.request.urlopen(f"http://127.0.0.1:{members[0].ports['metrics']}/metrics") as metrics:
        assert b"\netcd_server_has_leader 1\n" in metrics.read()

    base, expert, coordinator = start("base-worker"), start("expert-worker"), start("coordinator")
    everyone = [coordinator, base, expert]
    wait_until(lambda: answers(coordinator.ports["health"], "/health/ready"), everyone)
    authority = tmp_path / "api-tls" / "ca.crt"
    assert complete(coordinator, key="secret", authority=authority) == 200
    assert complete(coordinator, key="another", authority=authority) == 401
    for container, name in ((coordinator, "coordinator"), (base, "base-worker"), (expert, "expert-worker")):
        assert b"\ncosec_" in scraped(container, PEERS[name], tmp_path / "monitoring-tls"), name

    assert expert.stop() == 0
    wait_until(lambda: not answers(coordinator.ports["health"], "/health/ready"), everyone)
    assert answers(coordinator.ports["health"], "/health/live")
    assert coordinator.stop() == 0 and base.stop() == 0
