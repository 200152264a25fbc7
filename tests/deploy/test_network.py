"""The network policies of `production` allow the flows that the programs need, and no others between Pods."""

import itertools

import pytest

from rendered import Overlay, Workload

PROMETHEUS = {"kubernetes.io/metadata.name": "monitoring"}, {"app.kubernetes.io/name": "prometheus"}
CLIENT = {"cosec-client": "true"}, {"app": "any"}

FLOWS = {
    ("coordinator", "base-worker", "grpc"),
    ("coordinator", "expert-worker", "grpc"),
    ("coordinator", "etcd", "client"),
    ("base-worker", "etcd", "client"),
    ("expert-worker", "etcd", "client"),
    ("etcd", "etcd", "peer"),
}


def means(labels: dict, selector: dict) -> bool:
    assert selector.keys() <= {"matchLabels"}, "the tests read matchLabels only"
    return selector.get("matchLabels", {}).items() <= labels.items()


def rules(overlay: Overlay, workload: Workload, direction: str) -> list[dict]:
    """What policies allow to or from a workload's Pods; everything is denied to begin with."""
    policies = [policy["spec"] for policy in overlay.of("NetworkPolicy")]
    mine = [spec for spec in policies if means(workload.labels, spec["podSelector"])]
    assert any(direction.title() in spec["policyTypes"] for spec in mine), f"{workload.name} is open"
    return [rule for spec in mine for rule in spec.get(direction, [])]


def allows(rule: dict, peers: str, namespace: dict | None, pod: dict, workload: Workload, port: str) -> bool:
    """Whether `rule` lets Pods with labels `pod` through to `port` of `workload`; `namespace` None is the own one."""
    numbers = {port, workload.ports[port]}
    if not any(entry["port"] in numbers for entry in rule["ports"]):
        return False
    for peer in rule[peers]:
        if "ipBlock" in peer:
            continue
        elsewhere = peer.get("namespaceSelector")
        same = elsewhere is None and namespace is None
        other = elsewhere is not None and namespace is not None and means(namespace, elsewhere)
        if (same or other) and means(pod, peer.get("podSelector", {})):
            return True
    return False


def test_pods_reach_what_they_need_and_nothing_else(production):
    allowed = set()
    for source, target in itertools.product(production.workloads, repeat=2):
        for port in target.ports:
            leaves = any(
                allows(rule, "to", None, target.labels, target, port) for rule in rules(production, source, "egress")
            )
            enters = any(
                allows(rule, "from", None, source.labels, target, port) for rule in rules(production, target, "ingress")
            )
            assert leaves == enters, f"{source.name} to {target.name}, {port}: only one side allows it"
            if leaves:
                allowed.add((source.name, target.name, port))
    assert allowed == FLOWS


@pytest.mark.parametrize(
    ("who", "entries"),
    [
        (
            PROMETHEUS,
            {
                ("coordinator", "metrics"),
                ("base-worker", "metrics"),
                ("expert-worker", "metrics"),
                ("etcd", "metrics"),
            },
        ),
        (CLIENT, {("coordinator", "http"), ("coordinator", "grpc")}),
        (({"kubernetes.io/metadata.name": "default"}, {"app": "any"}), set()),
    ],
)
def test_others_reach_only_their_doors(production, who, entries):
    namespace, pod = who
    reached = {
        (workload.name, port)
        for workload in production.workloads
        for port in workload.ports
        if any(allows(rule, "from", namespace, pod, workload, port) for rule in rules(production, workload, "ingress"))
    }
    assert reached == entries


def test_every_pod_may_ask_dns(production):
    for workload in production.workloads:
        ports = [
            (entry["protocol"], entry["port"])
            for rule in rules(production, workload, "egress")
            for entry in rule["ports"]
            if entry["port"] == 53
        ]
        assert sorted(ports) == [("TCP", 53), ("UDP", 53)], workload.name
