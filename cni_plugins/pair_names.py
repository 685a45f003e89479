"""What pairs of interfaces are called, and their MACs: both depend on the network and the attachment alone.

So nothing need be remembered to find an attachment again, and what nobody owns can be told from what is ours.
"""

from __future__ import annotations

import re
from base64 import b32encode
from hashlib import sha256

from cni_plugins.errors import ConfigurationError
from cni_plugins.settings import Settings
from cni_plugins.types import INTERFACE_NAME

_NETWORK_LETTERS, _OWNER_LETTERS = 4, 7
_LETTER = "[a-z2-7]"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Names:
    """The names and MACs of one network's pairs. `scope` tells networks of one name apart: bridge's or ptp's, and which."""

    def __init__(self, prefix: str, *scope: str) -> None:
        self._prefix = prefix + _letters(*scope)[:_NETWORK_LETTERS]
        self._scope = scope
        self._ours = re.compile(re.escape(self._prefix) + f"{_LETTER}{{{_OWNER_LETTERS}}}")

    @classmethod
    def from_settings(cls, settings: Settings, prefix: str, *scope: str) -> Names:
        """Read `interfacePrefix`, which has a default. Raises ConfigurationError."""
        prefix = settings.text("interfacePrefix", default=prefix)
        if not INTERFACE_NAME.fullmatch(prefix + "x" * (_NETWORK_LETTERS + _OWNER_LETTERS)):
            raise settings.wrong("interfacePrefix", "at most 4 letters, digits, '_', '.' and '-'")
        return cls(prefix, *scope)

    def host(self, owner: str) -> str:
        """Return the name of an attachment's host end."""
        return self._prefix + _letters(*self._scope, owner)[:_OWNER_LETTERS]

    def mac(self, end: str, owner: str) -> str:
        """Return the MAC of an attachment's `host` or `pod` end."""
        return mac(end, *self._scope, owner)

    def has(self, name: str) -> bool:
        """Tell whether an interface is called like a host end of this network."""
        return self._ours.fullmatch(name) is not None


def mac(*words: str) -> str:
    """Return a MAC that depends on nothing but the words: 46 bits of hash, locally administered, unicast.

    Left to itself the kernel takes random ones (Linux), so a neighbour's cache is wrong after a restart, or
    ones that collide (FreeBSD before 15 and after, PR 184149).
    """
    first, *rest = _digest(*words)[:6]
    return bytes([first & 0xFC | 0x02, *rest]).hex(":")


def checked_mac(text: str, where: str) -> str:
    """Return a MAC that somebody asks for, in lower case. Raises ConfigurationError unless it is a unicast one."""
    lower = text.lower().replace("-", ":")
    if not _MAC.fullmatch(lower) or int(lower[:2], 16) & 1 or lower == "00:00:00:00:00:00":
        raise ConfigurationError(
            f"{where}: mac {text!r} is no unicast link-layer address such as 02:00:5e:00:53:01"
        )
    return lower


def _digest(*words: str) -> bytes:
    return sha256("\0".join(words).encode(errors="surrogateescape")).digest()


def _letters(*words: str) -> str:
    return b32encode(_digest(*words)).decode().lower()
