"""An overlay as `kubectl kustomize` renders it, with the questions that the tests ask of it."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("minimal", "production")


def image_name(reference: str) -> str:
    """`cosec-worker` of `registry/cosec-worker:0.1.0`."""
    return reference.rsplit("/", 1)[-1].split(":", 1)[0]


@dataclass(frozen=True)
class Workload:
    """A Deployment or StatefulSet and what its Pods are made of."""

    object: dict

    @property
    def name(self) -> str:
        return self.object["metadata"]["name"]

    @property
    def labels(self) -> dict:
        return self.object["spec"]["template"]["metadata"]["labels"]

    @property
    def pod(self) -> dict:
        return self.object["spec"]["template"]["spec"]

    @property
    def container(self) -> dict:
        """The one container that is no init container."""
        (container,) = self.pod["containers"]
        return container

    @property
    def containers(self) -> list[dict]:
        return self.pod.get("initContainers", []) + self.pod["containers"]

    @property
    def ports(self) -> dict:
        """Numbers by name."""
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}

    @property
    def program(self) -> str | None:
        """The program of ours that it runs."""
        programs = ("cosec-coordinator", "cosec-worker")
        return next((name for name in programs if image_name(self.container["image"]).startswith(name)), None)


class Overlay:
    """The objects of one overlay."""

    def __init__(self, name: str) -> None:
        assert shutil.which("kubectl"), "kubectl is missing: install version 1.27 or later, whose kustomize is 5"
        rendered = subprocess.run(
            ["kubectl", "kustomize", KUBERNETES / "overlays" / name], capture_output=True, text=True, check=False
        )
        assert rendered.returncode == 0, rendered.stderr
        # Kustomize warns of what is deprecated there.
        assert not rendered.stderr, rendered.stderr
        self.name = name
        self.text = rendered.stdout
        self.objects = list(yaml.safe_load_all(rendered.stdout))

    def of(self, kind: str) -> list[dict]:
        return [thing for thing in self.objects if thing["kind"] == kind]

    def named(self, kind: str, name: str) -> dict:
        found = [thing for thing in self.of(kind) if thing["metadata"]["name"] == name]
        assert found, f"there is no {kind} {name}"
        return found[0]

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(thing) for kind in ("Deployment", "StatefulSet") for thing in self.of(kind)]

    def selected(self, selector: dict) -> list[Workload]:
        """Workloads whose Pods `selector` (a map, or an object with matchLabels) means."""
        assert "matchExpressions" not in selector, "the tests do not read matchExpressions"
        labels = selector.get("matchLabels", {}) if "matchLabels" in selector or not selector else selector
        return [workload for workload in self.workloads if labels.items() <= workload.labels.items()]

    def files(self, workload: Workload) -> Iterator[tuple[str, str]]:
        """Path in the container and content of every file that a ConfigMap puts there."""
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        for mount in workload.container.get("volumeMounts", []):
            if config_map := volumes.get(mount["name"], {}).get("configMap"):
                for name, content in self.named("ConfigMap", config_map["name"])["data"].items():
                    yield f"{mount['mountPath']}/{name}", content
