"""Plugins of somebody else's, as executables that speak the CNI protocol: for types that there is no class for.

Optional, and off unless directories with such executables are configured. They run as we do, in the network namespace of
this process, with nothing of its environment but a PATH; what they do there is their own.

Source: the CNI specification 1.1.0, "Section 2: Execution Protocol" and "Section 4: Plugin Delegation".
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cni_plugins import documents, executables, results
from cni_plugins.errors import (
    ConfigurationError,
    ExternalPluginError,
    IncompatibleVersionError,
    MalformedResultError,
    NetworkError,
    UnknownPluginError,
)
from cni_plugins.plugin import Attachment, Context, Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import CNI_VERSION, OLDEST_VERSION, Result

SECONDS = 60.0
"""How long an executable may take for a call."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where executables find what they call in turn."""
_CHECK_SINCE, _GC_SINCE = (0, 4, 0), (1, 1, 0)
_UNDECODABLE = 6
"""The specification's code for content that cannot be decoded."""
_MOST_WORDS = 1000
_BEFORE_VERSIONS = ": unknown CNI_COMMAND: VERSION"
"""What a plugin answers that is older than the question; it speaks the first version (libcni's pkg/invoke)."""


class ExternalPlugin(Plugin):
    """One executable with its configuration. Every method may raise ExternalPluginError.

    As an IPAM plugin it is given the whole configuration of the plugin that delegates to it. `version` is the
    configuration's cniVersion.
    """

    type: ClassVar[str] = ""
    shared: ClassVar[bool] = True
    translates = False

    def __init__(
        self,
        settings: Settings,
        context: Context,
        *,
        binaries: Sequence[Path],
        version: str = CNI_VERSION,
        seconds: float = SECONDS,
    ) -> None:
        self._where = settings.where
        self._values = settings.whole.values
        self._network = context.network
        self._version = version
        self._number = tuple(map(int, version.split(".")))
        self._binaries = tuple(binaries)
        self._seconds = seconds
        self._path = _find(settings, self._binaries)
        self._compatible = False

    def add(self, request: Request) -> Result:
        """Run ADD, and read its result."""
        answer = self._call("ADD", request.attachment, self._configuration(request))
        try:
            return results.from_json(answer)
        except MalformedResultError as error:
            raise ExternalPluginError(
                f"{self._what('ADD', request.attachment)}: {error}", _UNDECODABLE
            ) from error

    def delete(self, request: Request) -> None:
        """Run DEL; without the pod's network stack if that is gone."""
        told = self._number >= _CHECK_SINCE
        configuration = self._configuration(request, previous=told)
        self._call("DEL", request.attachment, configuration, netns=request.stack is not None)

    def check(self, request: Request) -> None:
        """Run CHECK, where the configuration's version has it."""
        if self._number >= _CHECK_SINCE:
            self._call("CHECK", request.attachment, self._configuration(request))

    def gc(self, requests: Sequence[Request]) -> None:
        """Run GC, where the configuration's version has it."""
        if self._number >= _GC_SINCE:
            valid = [
                {"containerID": request.attachment.container_id, "ifname": request.attachment.ifname}
                for request in requests
            ]
            self._call("GC", None, {**self._configuration(None), "cni.dev/valid-attachments": valid})

    def status(self) -> list[str]:
        """Ask for its versions, and run STATUS where the configuration's version has it."""
        try:
            self._check_version()
            if self._number >= _GC_SINCE:
                self._call("STATUS", None, self._configuration(None))
        except NetworkError as error:
            return [str(error)]
        return []

    def _configuration(self, request: Request | None, *, previous: bool = True) -> dict[str, Any]:
        """What it is told on its standard input."""
        told = {**self._values, "name": self._network, "cniVersion": self._version}
        if request is not None:
            if runtime := request.runtime.to_json():
                told["runtimeConfig"] = runtime
            if previous and request.previous != Result():
                told["prevResult"] = results.to_json(request.previous, self._version)
        return told

    def _call(
        self,
        command: str,
        attachment: Attachment | None,
        configuration: Mapping[str, Any],
        *,
        netns: bool = True,
    ) -> dict[str, Any]:
        """Run a command; return what it answers, nothing for those that answer nothing."""
        environment = {"CNI_PATH": os.pathsep.join(map(str, self._binaries))}
        if attachment is not None:
            environment |= {
                "CNI_CONTAINERID": attachment.container_id,
                "CNI_IFNAME": attachment.ifname,
                "CNI_NETNS": self._netns(attachment) if netns else "",
                "CNI_ARGS": self._args(attachment),
            }
        self._check_version()
        return self._run(command, self._what(command, attachment), environment, configuration)

    def _check_version(self) -> None:
        """Ask for the versions that it speaks, until it has said so. Raises IncompatibleVersionError.

        Several threads may ask at a time: one that it hangs for must not keep the others.
        """
        if self._compatible:
            return
        what = self._what("VERSION", None)
        # Plugins of long ago look whether they have all that ADD needs before they look what they are asked for.
        unused = dict.fromkeys(("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"), "dummy")
        try:
            answer = self._run("VERSION", what, unused, {"cniVersion": self._version})
        except ExternalPluginError as error:
            if not str(error).endswith(_BEFORE_VERSIONS):
                raise
            answer = {"supportedVersions": [OLDEST_VERSION]}
        versions = answer.get("supportedVersions")
        if not versions and answer.get("cniVersion") == "0.2.0":
            versions = ["0.1.0", "0.2.0"]
        if not isinstance(versions, list):
            raise ExternalPluginError(f"{what}: it does not tell which versions it speaks", _UNDECODABLE)
        if self._version not in versions:
            spoken = executables.in_one_line(", ".join(map(str, versions)))
            raise IncompatibleVersionError(
                f"{self._where}: {self._path} does not speak version {self._version} of CNI, but {spoken}; "
                "change the configuration's cniVersion"
            )
        self._compatible = True

    def _run(
        self, command: str, what: str, environment: Mapping[str, str], configuration: Mapping[str, Any]
    ) -> dict[str, Any]:
        finished = executables.run(
            self._path,
            {"PATH": _PATH, "CNI_COMMAND": command, **environment},
            json.dumps(configuration).encode(),
            seconds=self._seconds,
            what=what,
        )
        answer = _decoded(finished.output)
        if finished.code or (answer and answer.get("code")):
            raise _failure(what, finished, answer)
        if answer is None and command in ("ADD", "VERSION"):
            said = executables.in_one_line(finished.output[:_MOST_WORDS])
            raise ExternalPluginError(f"{what}: its answer is no JSON object, but {said!r}", _UNDECODABLE)
        return answer or {}

    def _what(self, command: str, attachment: Attachment | None) -> str:
        """What messages call a run."""
        return f"{self._where}: {command}" + (f" of {attachment.owner}" if attachment else "")

    def _netns(self, attachment: Attachment) -> str:
        if sys.platform == "linux" and not attachment.netns.startswith("/"):
            raise ConfigurationError(
                f"{self._where}: {attachment.owner}: the network namespace is {attachment.netns!r}, but executables "
                "need its path"
            )
        return attachment.netns

    def _args(self, attachment: Attachment) -> str:
        for name, value in attachment.args.items():
            if ";" in name + value or "=" in name:
                raise ConfigurationError(
                    f"{self._where}: {attachment.owner}: the argument {name} cannot be told to executables, as ; and "
                    "= separate them"
                )
        return ";".join(f"{name}={value}" for name, value in attachment.args.items())


def _find(settings: Settings, binaries: Sequence[Path]) -> Path:
    name = settings.type
    if not name or Path(name).name != name or name in (".", ".."):
        raise settings.wrong("type", "a name without slashes")
    for directory in binaries:
        path = directory / name
        if path.is_file() and os.access(path, os.X_OK):
            return path.absolute()
    raise UnknownPluginError(
        f"plugin type {name!r} is not installed: there is no class for it, and no executable in "
        f"{', '.join(map(str, binaries))}; change the network configuration, or install it there"
    )


def _decoded(output: bytes) -> dict[str, Any] | None:
    """The JSON object that an executable has written; None if it is none."""
    try:
        answer = documents.parse(output)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _failure(
    what: str, finished: executables.Finished, answer: Mapping[str, Any] | None
) -> ExternalPluginError:
    if answer and isinstance(answer.get("code"), int) and answer.get("code"):
        words = [str(answer[key]) for key in ("msg", "details") if answer.get(key)]
        text = executables.in_one_line(": ".join(words)) or f"error {answer['code']}"
        return ExternalPluginError(f"{what}: {text}", answer["code"])
    how = f"ended with code {finished.code}" if finished.code >= 0 else f"killed by signal {-finished.code}"
    said = executables.in_one_line(finished.errors or finished.output[:_MOST_WORDS])
    return ExternalPluginError(f"{what}: {how}, and told no error" + (f" but: {said}" if said else ""))
