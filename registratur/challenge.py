"""WWW-Authenticate challenges (RFC 9110, section 11.6.1), as text in and values out.

One header may hold several challenges, with commas both between them and between their parameters::

    Bearer realm="https://auth.example/token",service="example",scope="repository:a/b:pull", Basic realm="x"
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SEPARATORS = re.compile(r"[ \t,]*")
_SCHEME = re.compile(rf"({_NAME})(?=[ \t,]|$)[ \t]*")
_PARAMETER = re.compile(rf'({_NAME})[ \t]*=[ \t]*(?:({_NAME})(?=[ \t,]|$)|"((?:[^"\\]|\\.)*)")', re.DOTALL)
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a server offers; scheme and parameter names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    token68: str = ""


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Read all WWW-Authenticate headers of one answer.

    Reading a header stops where it breaks the grammar: what stood before can still be answered.
    """
    return tuple(challenge for header in headers for challenge in _parse(header))


def _parse(header: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    position = _skip(header, 0)
    while scheme := _SCHEME.match(header, position):
        position = scheme.end()
        parameters: dict[str, str] = {}
        token68 = ""
        if (bare := _TOKEN68.match(header, position)) and not _SCHEME.fullmatch(header, position):
            token68, position = bare.group(), bare.end()
        else:
            while parameter := _PARAMETER.match(header, position):
                name, plain, quoted = parameter.groups()
                value = plain if plain is not None else _ESCAPE.sub(r"\1", quoted)
                parameters.setdefault(name.lower(), value)
                position = _skip(header, parameter.end())
        challenges.append(Challenge(scheme.group(1).lower(), parameters, token68))
        position = _skip(header, position)
    return challenges


def _skip(header: str, position: int) -> int:
    separators = _SEPARATORS.match(header, position)
    return separators.end() if separators else position
