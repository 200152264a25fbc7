"""What is wrong with a manifest shows here and not in a cluster: schemas, and that its parts agree with each other."""

import re
import tomllib

import kubernetes_validate
import pytest

from rendered import KUBERNETES, Workload, image_name

KUBERNETES_VERSION = "1.32"
CUSTOM = ("monitoring.coreos.com/", "cert-manager.io/")


def environment(workload: Workload) -> dict[str, str]:
    """Variables with a value of their own."""
    return {entry["name"]: entry["value"] for entry in workload.container.get("env", []) if "value" in entry}


def test_objects_obey_their_schemas(overlay):
    for thing in overlay.objects:
        if not thing["apiVersion"].startswith(CUSTOM):
            kubernetes_validate.validate(thing, KUBERNETES_VERSION, strict=True)


def test_the_schemas_find_unknown_fields(overlay):
    broken = overlay.of("Service")[0] | {"spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES_VERSION, strict=True)


def test_everything_stands_in_the_namespace(overlay):
    (namespace,) = overlay.of("Namespace")
    for thing in overlay.objects:
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["namespace"] == namespace["metadata"]["name"], thing["metadata"]["name"]


def test_pods_are_restricted(overlay):
    """The profile `restricted` of the Pod Security Standards, which the namespace enforces, and read-only roots."""
    (namespace,) = overlay.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in overlay.workloads:
        pod = workload.pod["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] >= 1000, workload.name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, workload.name
        for container in workload.containers:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], workload.name
            assert context["capabilities"] == {"drop": ["ALL"]}, workload.name
        assert all("hostPath" not in volume for volume in workload.pod.get("volumes", [])), workload.name
        assert not any(workload.pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), workload.name


def test_pods_know_nothing_of_the_api_server(overlay):
    accounts = {account["metadata"]["name"]: account for account in overlay.of("ServiceAccount")}
    for workload in overlay.workloads:
        assert accounts[workload.pod["serviceAccountName"]]["automountServiceAccountToken"] is False
        assert workload.pod["automountServiceAccountToken"] is False
        assert workload.pod["enableServiceLinks"] is False


def test_containers_say_what_they_need(overlay):
    for workload in overlay.workloads:
        for container in workload.containers:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), workload.name
            assert "memory" in container["resources"]["limits"], workload.name
            assert not container["image"].endswith(":latest") and ":" in container["image"], container["image"]


def test_gpus_go_to_workers_that_use_them(overlay):
    """What asks for a GPU runs the image for it and is told to use it."""
    for workload in overlay.workloads:
        limits, image = workload.container["resources"]["limits"], workload.container["image"]
        given = [
            "nvidia.com/gpu" in limits,
            image_name(image) == "cosec-worker-cuda",
            workload.container.get("args", [])[-2:] == ["--device", "cuda"],
        ]
        assert all(given) or not any(given), f"{workload.name}: {given}"
    gpus = [workload for workload in overlay.workloads if "nvidia.com/gpu" in workload.container["resources"]["limits"]]
    assert len(gpus) == (2 if overlay.name == "production" else 0)


def test_selectors_find_pods(overlay):
    for workload in overlay.workloads:
        selector = workload.object["spec"]["selector"]
        assert overlay.selected(selector) == [workload], f"{workload.name} selects Pods of others"
    for service in overlay.of("Service"):
        assert overlay.selected(service["spec"]["selector"]), service["metadata"]["name"]
    for budget in overlay.of("PodDisruptionBudget"):
        assert len(overlay.selected(budget["spec"]["selector"])) == 1, budget["metadata"]["name"]
    for workload in overlay.workloads:
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            assert overlay.selected(constraint["labelSelector"]) == [workload], workload.name


def test_services_lead_to_ports(overlay):
    for service in overlay.of("Service"):
        for workload in overlay.selected(service["spec"]["selector"]):
            for port in service["spec"]["ports"]:
                assert port["targetPort"] in workload.ports, f"{service['metadata']['name']}: {port['name']}"


def test_probes_ask_ports_that_are_there(overlay):
    for workload in overlay.workloads:
        container = workload.container
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(name, {})
            for how in ("grpc", "httpGet", "tcpSocket"):
                port = probe.get(how, {}).get("port")
                known = [None, *workload.ports, *workload.ports.values()]
                assert port in known, f"{workload.name}: {name} asks port {port}"
        assert "readinessProbe" in container and "livenessProbe" in container, workload.name


def test_programs_listen_on_their_ports(overlay):
    for workload in overlay.workloads:
        listens = [value for name, value in environment(workload).items() if name.endswith("_LISTEN")]
        if workload.program:
            assert sorted(int(address.rsplit(":", 1)[1]) for address in listens) == sorted(workload.ports.values())


def test_references_lead_somewhere(overlay):
    for workload in overlay.workloads:
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload.object["spec"].get("volumeClaimTemplates", [])}
        for container in workload.containers:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, workload.name
        for volume in workload.pod.get("volumes", []):
            if config_map := volume.get("configMap"):
                overlay.named("ConfigMap", config_map["name"])
        if workload.object["kind"] == "StatefulSet":
            overlay.named("Service", workload.object["spec"]["serviceName"])
    for scaler in overlay.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        scaled = overlay.named(target["kind"], target["name"])
        assert "replicas" not in scaled["spec"], f"{target['name']}: who sets the replicas?"


def test_configuration_lies_where_the_programs_look(overlay):
    for workload in overlay.workloads:
        for name, value in environment(workload).items():
            if name.endswith("_CONFIG"):
                assert value in dict(overlay.files(workload)), f"{workload.name}: {value}"


def test_secrets_are_the_documented_ones(overlay):
    readme = (KUBERNETES / "README.md").read_text()
    secrets = set(re.findall(r"secretName: (\S+)", overlay.text))
    for workload in overlay.workloads:
        for entry in workload.container.get("env", []):
            if secret := entry.get("valueFrom", {}).get("secretKeyRef"):
                secrets.add(secret["name"])
    assert all(f"`{secret}`" in readme for secret in secrets), secrets


def test_certificates_are_those_that_are_mounted(production):
    """Every Secret of certificates is made by cert-manager, signed by an issuer that is there."""
    certificates = {thing["spec"]["secretName"]: thing["spec"] for thing in production.of("Certificate")}
    issuers = {thing["metadata"]["name"]: thing["spec"] for thing in production.of("Issuer")}
    for workload in production.workloads:
        for volume in workload.pod["volumes"]:
            if (name := volume.get("secret", {}).get("secretName", "")).endswith("-tls"):
                assert name in certificates, f"{workload.name}: {name}"
                assert volume["secret"].get("defaultMode", 0o644) & 0o007 == 0 or workload.name == "etcd", name
    for name, certificate in certificates.items():
        issuer = issuers[certificate["issuerRef"]["name"]]
        assert "selfSigned" in issuer or issuer["ca"]["secretName"] in certificates, name


def test_names_in_certificates_are_the_programs(production):
    """The names of roles, as the programs' source spells them."""
    source = (KUBERNETES.parents[1] / "proto" / "src" / "tls" / "role.rs").read_text()
    known = set(re.findall(r'"([\w.-]+\.cosec)"', source))
    named = {name for thing in production.of("Certificate") for name in thing["spec"].get("dnsNames", [])}
    assert {name for name in named if name.endswith(".cosec")} == known - {"anti-expert.workers.cosec"}
    for monitor in production.of("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint.get("scheme") != "https" or endpoint["tlsConfig"]["serverName"] in known


def test_only_minimal_is_in_the_clear(overlay):
    for workload in overlay.workloads:
        insecure = [name for name in environment(workload) if name.endswith("_INSECURE")]
        assert bool(insecure) == (overlay.name == "minimal"), workload.name


def test_draining_fits_the_grace_period(overlay):
    """preStop, the program's own grace period and five seconds to close come before the kill."""
    for workload in overlay.workloads:
        grace = [int(value) for name, value in environment(workload).items() if name.endswith("_GRACE_SECONDS")]
        if workload.program:
            pause = workload.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert workload.pod["terminationGracePeriodSeconds"] >= pause + sum(grace) + 5 and grace, workload.name


def strings(value) -> list[str]:
    """All strings in a TOML value."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def test_names_in_files_lead_to_services(overlay):
    """SRV records of the pools and addresses of etcd's members, as the programs' files spell them."""
    found = []
    for workload in overlay.workloads:
        for _, content in overlay.files(workload):
            found += strings(tomllib.loads(content))
    records = [re.fullmatch(r"_(\w+)\._tcp\.([\w-]+)\.(\w+)\.svc\.cluster\.local", text) for text in found]
    for record in filter(None, records):
        port, name, namespace = record.groups()
        service = overlay.named("Service", name)
        assert service["spec"]["clusterIP"] == "None" and service["metadata"]["namespace"] == namespace
        assert port in {entry["name"] for entry in service["spec"]["ports"]}
    members = [re.fullmatch(r"https://(\w+-\d)\.(\w+):(\d+)", text) for text in found]
    for member in filter(None, members):
        pod, service, port = member.groups()
        pool = overlay.named("StatefulSet", pod.rsplit("-", 1)[0])["spec"]
        assert pool["serviceName"] == service and int(pod.rsplit("-", 1)[1]) < pool["replicas"]
        assert int(port) in {entry["port"] for entry in overlay.named("Service", service)["spec"]["ports"]}
    assert any(records) or any(members), "nothing says where workers are"
