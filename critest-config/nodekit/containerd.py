"""Debian's containerd with runc and its CNI plugins: the peer, and the proof that images and harness are right."""

from __future__ import annotations

import json

from nodekit.endpoint import Endpoint
from nodekit.images import PAUSE
from nodekit.packages import CNI_PLUGINS
from nodekit.processes import Daemon

_CONFIG = """\
version = 2
root = "{base}/root"
state = "{base}/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{base}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Machines without CAP_SYS_RESOURCE cannot lower oom_score_adj; without this no pod starts there.
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{base}/net.d"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{base}/certs.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""

# `server` too is the mirror: nothing may be asked of the registries themselves.
_HOSTS = """\
server = "{mirror}"
[host."{mirror}"]
capabilities = ["pull", "resolve"]
"""


class Containerd(Endpoint):
    """containerd 1.6 as Debian 12 has it."""

    name = "containerd"

    def spawn(self) -> Daemon:
        """Start containerd with every registry mirrored and pods on a bridge."""
        config = self.base / "containerd.toml"
        config.write_text(
            _CONFIG.format(base=self.base, socket=self.socket, pause=PAUSE, plugins=CNI_PLUGINS)
        )
        hosts = self.base / "certs.d" / "_default" / "hosts.toml"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text(_HOSTS.format(mirror=self.mirror))
        network = self.base / "net.d" / "10-peer.conflist"
        network.parent.mkdir(exist_ok=True)
        network.write_text(json.dumps(self._network()))
        return Daemon(self.name, ["containerd", "--config", config], self.log)

    def _network(self) -> dict[str, object]:
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.213.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.base / "leases"),
        }
        bridge = {
            "type": "bridge",
            "bridge": "peer0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": addresses,
        }
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": "peer", "plugins": [bridge, ports]}
