"""A Pod's container as a process of this machine."""

import hashlib
import os
import re
import selectors
import socket
import subprocess
import time
from pathlib import Path

import trustme

from rendered import ROOT, Overlay, Workload

BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PAIR = ROOT / "deploy" / "demo-pair"
PATIENCE_SECONDS = 60
# What stands in for the models and GPUs of the overlays: the demo pair, whose expert needs no adapter, and the CPU.
MODELS = {
    r'"/models/base"': f'"{PAIR}/base"',
    r'"/models/expert"': f'"{PAIR}/expert"',
    r'"/models/tokenizers/[^"]+"': f'"{PAIR}/base"',
    r'"deepseek-ai/[^"]*6.7b[^"]*"': f'"{PAIR}/base"',
    r'"deepseek-ai/[^"]*1.3b[^"]*"': f'"{PAIR}/expert"',
    r"(?m)^adapter = .*$": "",
    r"^cuda$": "cpu",
    r"(?m)^kv_memory_mib = .*$": "kv_memory_mib = 64",
}
# What the Secret of the coordinator holds.
SECRETS = {
    "resume-key": "of thirty-two characters, or more",
    "keys.toml": f"[[keys]]\nname = 'somebody'\nsha256 = '{hashlib.sha256(b'secret').hexdigest()}'\n",
}


# Whom the certificate that each workload shows its peers names.
PEERS = {
    "base-worker": "base.workers.cosec",
    "expert-worker": "expert.workers.cosec",
    "coordinator": "coordinator.peers.cosec",
    "monitoring": "monitoring.peers.cosec",
}


def certificate(authority: trustme.CA, folder: Path, *names: str) -> None:
    """Files as a TLS Secret has them."""
    folder.mkdir()
    own = authority.issue_cert(*names)
    authority.cert_pem.write_to_path(folder / "ca.crt")
    own.private_key_pem.write_to_path(folder / "tls.key")
    for part in own.cert_chain_pems:
        part.write_to_path(folder / "tls.crt", append=True)


class Identities:
    """What cert-manager makes of `production`'s issuer of peers, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = trustme.CA()
        certificate(authority, folder / "api-tls", "127.0.0.1")
        for name, peer in PEERS.items():
            certificate(authority, folder / f"{name}-tls", peer)

    def places(self, name: str) -> dict[str, str]:
        """Where the files of the workload `name` lie in place of its Secrets."""
        return {r"/etc/cosec-peers/": f"{self.folder}/{name}-tls/", r"/etc/cosec-api/": f"{self.folder}/api-tls/"}


def free_ports(workload: Workload) -> dict[str, int]:
    """A port of 127.0.0.1 that nobody listens on for each of the container's, by name."""
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in workload.ports}
    ports = {name: each.getsockname()[1] for name, each in sockets.items()}
    for each in sockets.values():
        each.close()
    return ports


def rewritten(text: str, replaced: dict[str, str]) -> str:
    """`text` with what stands in for every pattern of `replaced`."""
    for pattern, new in replaced.items():
        text = re.sub(pattern, new, text)
    return text


class Container:
    """Runs the container of `workload`, its files in `folder`, its ports at `ports` of 127.0.0.1.

    `replaced` maps patterns to what stands in for them in files, arguments and environment.
    """

    def __init__(
        self,
        overlay: Overlay,
        workload: Workload,
        folder: Path,
        ports: dict[str, int],
        replaced: dict[str, str],
        pod: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ports = ports
        for name, content in SECRETS.items():
            (folder / name).write_text(content)
        self.replaced = MODELS | replaced | {"/etc/cosec-coordinator/": f"{folder}/"}
        for name, number in workload.ports.items():
            self.replaced[rf"0\.0\.0\.0:{number}\b"] = f"127.0.0.1:{ports[name]}"
        for path, content in overlay.files(workload):
            (folder / Path(path).name).write_text(self.rewritten(content))
            self.replaced[f"^{Path(path).parent}/"] = f"{folder}/"
        self.environment = {"POD_NAME": pod, "POD_IP": "0.0.0.0"}
        for entry in workload.container.get("env", []):
            self.environment.setdefault(entry["name"], self.rewritten(entry.get("value", "")))
        program = BINARIES / workload.program if workload.program else workload.name
        self.command = [program, *map(self.rewritten, workload.container.get("args", []))]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, stderr=log)

    def rewritten(self, text: str) -> str:
        """`text` with variables and replacements in it."""
        return rewritten(re.sub(r"\$\((\w+)\)", lambda found: self.environment[found.group(1)], text), self.replaced)

    def announced(self) -> list[str]:
        """Lines of standard output until every port is announced, or the program ends."""
        out, deadline = b"", time.monotonic() + PATIENCE_SECONDS
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while out.count(b" on 127.0.0.1:") < len(self.ports) and ready.select(deadline - time.monotonic()):
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
