"""Alerts, scaling and scraping speak of metrics and ports that are there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from rendered import ROOT

HERE = Path(__file__).parent
# Metrics of others, which no source of ours names.
FOREIGN = {"etcd_server_has_leader"}


def registered() -> set[str]:
    """Names of all metrics in the programs' sources."""
    sources = [path for room in ("coordinator", "worker") for path in (ROOT / room / "src").rglob("*.rs")]
    return {name for path in sources for name in re.findall(r'"(cosec_[a-z_]+)"', path.read_text())}


def names(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression, histograms' without their suffix."""
    found = re.findall(r"\b((?:cosec|etcd)_[a-z_]+)\b", re.sub(r"\{[^}]*\}", "", expression))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


@pytest.fixture(scope="module")
def rules(production, tmp_path_factory) -> Path:
    """The alert rules as Prometheus reads them, in a folder with their tests."""
    folder = tmp_path_factory.mktemp("rules")
    (rule,) = production.of("PrometheusRule")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    shutil.copy(HERE / "alerts.yaml", folder)
    return folder / "rules.yaml"


def promtool(*arguments: str | Path) -> None:
    assert shutil.which("promtool"), "promtool is missing: install it (Debian: apt-get install prometheus)"
    told = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def test_alert_rules_are_valid(rules):
    promtool("check", "rules", rules)


def test_alerts_fire_when_they_should(rules):
    promtool("test", "rules", rules.with_name("alerts.yaml"))


def test_every_alert_is_tested(production):
    (rule,) = production.of("PrometheusRule")
    tested = (HERE / "alerts.yaml").read_text()
    for alert in rule["spec"]["groups"][0]["rules"]:
        assert re.search(rf"\b{alert['alert']}\b", tested), alert["alert"]


def test_metrics_are_there(production):
    (rule,) = production.of("PrometheusRule")
    wanted = set()
    for group in rule["spec"]["groups"]:
        for alert in group["rules"]:
            assert names(alert["expr"]), alert["alert"]
            wanted |= names(alert["expr"])
    for scaler in production.of("HorizontalPodAutoscaler"):
        wanted |= {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert wanted - FOREIGN <= registered(), wanted - FOREIGN - registered()


def test_the_metrics_adapter_is_told_of_the_same_metric(production):
    readme = (ROOT / "deploy" / "kubernetes" / "README.md").read_text()
    for scaler in production.of("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            assert f"seriesQuery: '{metric['pods']['metric']['name']}{{" in readme


def test_everything_is_scraped(production):
    scraped = set()
    for monitor in production.of("ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        services = [
            service for service in production.of("Service") if labels.items() <= service["metadata"]["labels"].items()
        ]
        assert services, monitor["metadata"]["name"]
        for service in services:
            ports = {port["name"] for port in service["spec"]["ports"]}
            assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
            scraped |= {workload.name for workload in production.selected(service["spec"]["selector"])}
    assert scraped == {workload.name for workload in production.workloads}
