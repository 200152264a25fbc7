"""The real programs take the configuration that the manifests give them."""

import pytest

from container import PATIENCE_SECONDS, Container, Identities, free_ports
from rendered import Overlay, Workload


def programs(overlay: Overlay) -> list[Workload]:
    return [workload for workload in overlay.workloads if workload.program]


def test_programs_start_with_their_configuration(overlay, tmp_path):
    assert len(programs(overlay)) == 3
    identities = Identities(tmp_path)
    for workload in programs(overlay):
        places = identities.places(workload.name)
        container = Container(overlay, workload, tmp_path / workload.name, free_ports(workload), places)
        announced = container.announced()
        status = container.stop()
        assert len(announced) == len(container.ports), f"{workload.name}: {container.log.read_text()}"
        assert status == 0, f"{workload.name}: {container.log.read_text()}"


@pytest.mark.parametrize("name", ["coordinator", "base-worker"])
def test_programs_refuse_other_configuration(overlay, tmp_path, name):
    (workload,) = (workload for workload in programs(overlay) if workload.name == name)
    unknown = {r"\A(?=#|model = )": "colour = 'blue'\n"}
    container = Container(overlay, workload, tmp_path, free_ports(workload), unknown)
    assert container.announced() == []
    assert container.process.wait(PATIENCE_SECONDS) != 0
    container.stop()
    assert "colour" in container.log.read_text()
