"""CNI's tuning plugin: sysctls of a pod's network stack, and properties of its interface.

    {"type": "tuning", "capabilities": {"mac": true}, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
     "mac": "02:00:00:00:00:05", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 500}

It comes after the plugin that attaches the pod. `args: {cni: {}}` may hold the same keys and wins over the capability
`mac`, that over `MAC` of CNI_ARGS, and that over the configuration. IFNAME in a sysctl's name is the pod's interface. A
DEL while the pod goes on gives the interface its properties back, not the sysctls; `dataDir`, where the reference plugin
keeps them meanwhile, is passed over.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import ClassVar

from cni_plugins.errors import AttachmentBrokenError, ConfigurationError, KernelError, NotAttachedError
from cni_plugins.links import Tuning
from cni_plugins.pair_names import checked_mac
from cni_plugins.plugin import Context, Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import NetworkStack, Result

_SYSCTL = re.compile(r"net([./][A-Za-z0-9_@:-]+)+")
_KEYS = {
    "mac": "mac",
    "mtu": "mtu",
    "promiscuous": "promisc",
    "all_multicast": "allmulti",
    "tx_queue_length": "txQLen",
}
"""What configurations call the properties of an interface."""


class TuningPlugin(Plugin):
    """Sysctls and properties of the pod's end."""

    type: ClassVar[str] = "tuning"
    translates = False

    def __init__(self, settings: Settings, context: Context) -> None:
        self._where = settings.where
        self._context = context
        arguments = settings.part("args").part("cni")
        self._sysctls = _sysctls(arguments if arguments.values.get("sysctl") is not None else settings)
        self._configured, self._arguments = _tuning(settings), _tuning(arguments)
        for name in {**self._configured.given(), **self._arguments.given()}:
            if name in context.links.untunable:
                raise ConfigurationError(
                    f"{self._where}: {_KEYS[name]}: {context.links.untunable[name]}; remove it"
                )

    def add(self, request: Request) -> Result:
        """Tune, or undo all of it. Raises ConfigurationError, NotAttachedError, KernelError, LedgerError."""
        if not request.previous.interfaces and not request.previous.ips:
            raise ConfigurationError(
                f"{self._where}: nothing comes before it; put it after the plugin that attaches pods"
            )
        stack, ifname = _stack(request), request.attachment.ifname
        wanted = self._wanted(request)
        with ExitStack() as undo:
            for name, value in self._sysctls_for(ifname).items():
                undo.callback(self._sysctl, request, name, self._sysctl(request, name, value))
            if wanted.given():
                before = self._present(request)
                self._remember(request, before)
                undo.callback(self._context.ledger.release, self._backups, request.owner)
                undo.callback(self._context.links.tune, stack, ifname, _of_these(before, wanted))
                self._context.links.tune(stack, ifname, wanted)
            undo.pop_all()
        return _told(request.previous, ifname, wanted)

    def delete(self, request: Request) -> None:
        """Give an interface that is still there its properties back."""
        release, claim = self._context.ledger.release, self._context.ledger.claim
        for kept in release(self._backups, request.owner):
            if request.stack is None:
                continue
            before = Tuning(**json.loads(kept)["before"])
            try:
                self._context.links.tune(request.stack, request.attachment.ifname, before)
            except NotAttachedError:
                continue
            except BaseException:
                claim(self._backups, kept, request.owner)
                raise

    def check(self, request: Request) -> None:
        """Compare all that is tuned."""
        faults = []
        for name, value in self._sysctls_for(request.attachment.ifname).items():
            present = self._sysctl(request, name)
            if present.split() != value.split():
                faults.append(f"{name} is {present}, not {value}")
        wanted = self._wanted(request).given()
        present_tuning = self._present(request).given() if wanted else {}
        faults += [
            f"{_KEYS[name]} is {present_tuning.get(name)}, not {value}"
            for name, value in wanted.items()
            if present_tuning.get(name) != value
        ]
        if faults:
            raise AttachmentBrokenError(
                f"{self._where}: {request.owner}: {'; '.join(faults)}; delete and add it again"
            )

    def gc(self, requests: Sequence[Request]) -> None:
        """Forget what the interfaces of others were like."""
        ledger, owners = self._context.ledger, {request.owner for request in requests}
        for stranger in {owner for _, owner in ledger.claims(self._backups)} - owners:
            ledger.release(self._backups, stranger)

    @property
    def _backups(self) -> str:
        """The pool of the ledger where each attachment has what its interface was like before."""
        return f"tuning of {self._context.network}"

    def _remember(self, request: Request, before: Tuning) -> None:
        # An ADD that a crash has cut short may have tuned already: what was noted then is older, and right.
        earlier = self._context.ledger.release(self._backups, request.owner)
        note = json.dumps(
            {"owner": request.owner, "before": _of_these(before, self._wanted(request)).given()}
        )
        self._context.ledger.claim(self._backups, earlier[0] if earlier else note, request.owner)

    def _wanted(self, request: Request) -> Tuning:
        given = {**self._configured.given()}
        if mac := request.runtime.mac or request.attachment.args.get("MAC"):
            given["mac"] = checked_mac(mac, f"{self._where}: {request.owner}")
        return Tuning(**{**given, **self._arguments.given()})

    def _present(self, request: Request) -> Tuning:
        return self._context.links.tune(_stack(request), request.attachment.ifname, Tuning())

    def _sysctls_for(self, ifname: str) -> dict[str, str]:
        """Return the sysctls with the interface's name in theirs, its dots written as the notation has it."""
        found = {}
        for name, value in self._sysctls.items():
            dotted = name.startswith("net.")
            found[name.replace("IFNAME", ifname.replace(".", "/") if dotted else ifname, 1)] = value
        return found

    def _sysctl(self, request: Request, name: str, value: str | None = None) -> str:
        operation = f"set sysctl {name} of" if value is not None else f"read sysctl {name} of"
        stack = _stack(request)
        try:
            return stack.sysctl(name) if value is None else stack.sysctl(name, value)
        except OSError as error:
            number = error.errno or 0
            text = error.strerror or str(error)
            text = "" if text == os.strerror(number) else text
            raise KernelError(number, operation, request.owner, text) from error


def _sysctls(settings: Settings) -> Mapping[str, str]:
    sysctls = settings.mapping("sysctl")
    for name, value in sysctls.items():
        if not _SYSCTL.fullmatch(name):
            raise ConfigurationError(
                f"{settings.where}: sysctl {name!r} is not one of a network stack; give names below net, "
                "such as net.ipv4.conf.IFNAME.arp_filter"
            )
        if not isinstance(value, str):
            raise settings.wrong("sysctl", f'strings, such as "{name}": "1"')
    return sysctls


def _tuning(settings: Settings) -> Tuning:
    mac = settings.text("mac")
    given = {key for key, value in settings.values.items() if value is not None}
    return Tuning(
        mac=checked_mac(mac, settings.where) if mac else None,
        mtu=settings.integer("mtu", most=65535) or None,
        promiscuous=settings.boolean("promisc") or None,
        all_multicast=settings.boolean("allmulti") if "allmulti" in given else None,
        tx_queue_length=settings.integer("txQLen", most=(1 << 31) - 1) if "txQLen" in given else None,
    )


def _stack(request: Request) -> NetworkStack:
    if request.stack is None:
        raise NotAttachedError(f"{request.owner} has no network stack to be tuned; make the pod anew")
    return request.stack


def _of_these(values: Tuning, fields: Tuning) -> Tuning:
    """Return those of some values whose fields are given."""
    return Tuning(**{name: value for name, value in values.given().items() if name in fields.given()})


def _told(result: Result, ifname: str, wanted: Tuning) -> Result:
    """Return a result that knows of a new MAC or MTU."""
    interfaces = (
        replace(one, mac=wanted.mac or one.mac, mtu=wanted.mtu or one.mtu)
        if one.sandbox and one.name == ifname
        else one
        for one in result.interfaces
    )
    return replace(result, interfaces=tuple(interfaces))
