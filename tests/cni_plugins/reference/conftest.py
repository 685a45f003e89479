"""The reference plugins of CNI and ours behind the same calls: `add` and `delete` for networks, `lease` and `release` for IPAM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cni_plugins import results
from cni_plugins.conflist import NetworkList
from cni_plugins.errors import NetworkError
from cni_plugins.ledger import Ledger
from cni_plugins.plugin import Attachment, Request
from cni_plugins.runtime import CNI
from cni_plugins.runtime_config import RuntimeConfig
from cni_plugins.settings import Settings
from cni_plugins.types import Result

BINARIES = Path("/usr/lib/cni")
PACKAGES = "containernetworking-plugins iptables"


class RefusedError(Exception):
    """A plugin of the reference has failed, with its own words."""


class Side:
    """One of the two."""

    @staticmethod
    def path_of(pod):
        """The path of a namespace that nobody has bound anywhere."""
        return f"/proc/{os.getpid()}/fd/{pod.move_target}"


class Reference(Side):
    """The reference plugins, run as libcni runs them."""

    error = RefusedError

    def __init__(self, host, data):
        self.host, self._data = host, data

    def add(self, network, container, pod, **arguments):
        result = None
        for plugin in network["plugins"]:
            call = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container, "CNI_NETNS": self.path_of(pod)}
            result = self._run(network, plugin, call, previous=result, **arguments)
        return result

    def delete(self, network, container, pod, result, **arguments):
        for plugin in reversed(network["plugins"]):
            call = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container, "CNI_NETNS": self.path_of(pod)}
            self._run(network, plugin, call, previous=result, **arguments)

    def lease(self, network, container, **arguments):
        return self._ipam("ADD", network, container, **arguments)

    def release(self, network, container):
        self._ipam("DEL", network, container)

    def _ipam(self, command, network, container, **arguments):
        call = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": "/nowhere"}
        plugin = network["plugins"][0]
        return self._run(network, plugin, call, binary=plugin["ipam"]["type"], **arguments)

    def _run(self, network, plugin, call, *, previous=None, runtime=None, args="", binary=""):
        config = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
        if "ipam" in plugin:
            config["ipam"] = {**plugin["ipam"], "dataDir": str(self._data)}
        wanted = plugin.get("capabilities", {})
        capabilities = {key: value for key, value in (runtime or {}).items() if wanted.get(key)}
        config |= {"runtimeConfig": capabilities} if capabilities else {}
        config |= {"prevResult": previous} if previous else {}
        environment = {
            **call,
            "CNI_IFNAME": network.get("ifname", "eth0"),
            "CNI_PATH": str(BINARIES),
            "CNI_ARGS": args,
            "PATH": os.environ["PATH"],
        }
        command = [BINARIES / (binary or plugin["type"])]
        # A child of the thread that is the namespace.
        done = self.host.run(
            lambda: subprocess.run(
                command,
                input=json.dumps(config),
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        )
        if done.returncode:
            raise RefusedError(done.stdout + done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None


class Ours(Side):
    """Our plugins."""

    error = NetworkError

    def __init__(self, host, make_context):
        self.host = host
        self._ledger = Ledger(None, "boot")
        self._cni = CNI(self._ledger, host)
        self._context = make_context(host, ledger=self._ledger)

    def add(self, network, container, pod, **arguments):
        attachment = _attachment(network, container, self.path_of(pod), **arguments)
        result = self._cni.add(NetworkList.from_json(network), attachment, pod)
        return results.to_json(result, network["cniVersion"])

    def delete(self, network, container, pod, result, **arguments):
        attachment = _attachment(network, container, self.path_of(pod), **arguments)
        self._cni.delete(NetworkList.from_json(network), attachment, pod)
        self._cni.settle()

    def lease(self, network, container, **arguments):
        plugin, request = self._ipam(network, container, **arguments)
        return results.to_json(plugin.add(request), network["cniVersion"])

    def release(self, network, container):
        plugin, request = self._ipam(network, container)
        plugin.delete(request)

    def close(self):
        self._cni.close()
        self._ledger.close()

    def _ipam(self, network, container, **arguments):
        settings = Settings(network["plugins"][0], f"network {network['name']}")
        attachment = _attachment(network, container, "/nowhere", **arguments)
        request = Request(attachment, None, Result(), attachment.runtime.only(settings.capabilities))
        return self._context.delegate(settings.part("ipam")), request


def _attachment(network, container, path, *, runtime=None, args=""):
    words = dict(word.split("=", 1) for word in args.split(";") if word)
    capabilities = RuntimeConfig.from_json(runtime or {})
    return Attachment(container, network.get("ifname", "eth0"), path, capabilities, words)


@pytest.fixture
def reference(make_namespace, tmp_path):
    if sys.platform != "linux":
        pytest.skip("Linux only: the reference plugins are Debian's")
    assert (BINARIES / "bridge").exists(), f"as root: apt-get install {PACKAGES}"
    return Reference(make_namespace(), tmp_path)


@pytest.fixture
def ours(make_namespace, make_context):
    made = Ours(make_namespace(), make_context)
    yield made
    made.close()


@pytest.fixture
def with_resolv_conf(tmp_path):
    """Put the path of a file in the form of resolv.conf(5) where a network has the word RESOLV."""
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# x\n; y\nnameserver 192.0.2.1\nsearch a b\nsearch c\ndomain d\noptions ndots:5 edns0\nnameserver\n"
    )
    return lambda network: json.loads(json.dumps(network).replace("RESOLV", str(path)))
