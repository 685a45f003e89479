"""Containerfiles: the part of the language that puts local files and settings into an image.

Nothing is run, so RUN is refused; so is all that would fetch something or needs more than one stage.
Syntax: https://docs.docker.com/reference/dockerfile/
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from baustelle.errors import ContainerfileError

INSTRUCTIONS = frozenset(
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM LABEL STOPSIGNAL USER VOLUME WORKDIR".split()  # noqa: SIM905
)
"""What is understood."""

_REMEDIES = {
    "RUN": "prepare the files beforehand and COPY them, or build the image with buildah or docker",
    "HEALTHCHECK": "use probes of the pod instead",
    "MAINTAINER": "use LABEL org.opencontainers.image.authors instead",
    "ONBUILD": "write the instruction into the Containerfiles that use the image",
    "SHELL": "write CMD and ENTRYPOINT in their JSON form",
}
_FLAGS = {"COPY": {"chown", "chmod"}, "ADD": {"chown", "chmod"}}
_FLAG_REMEDIES = {
    "from": "only one stage is supported; COPY from the build context",
    "platform": "choose the platform with the build's own option",
}
_JSON_FORM = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "VOLUME"})

_LINE = re.compile(r"\s*([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S*))?(?:\s+|$)")
_HEREDOC = re.compile(r"(?:^|\s)<<-?[\"']?[A-Za-z_]")
_DIRECTIVE = re.compile(r"#\s*escape\s*=\s*(\S+)\s*", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([-+])([^{}]*))?\}")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, with variables not yet replaced."""

    line: int
    """Where it begins, from 1."""
    keyword: str
    """In upper case."""
    flags: Mapping[str, str]
    text: str
    """All after keyword and flags, continuation lines joined."""
    json: tuple[str, ...] | None
    """The strings of the JSON form, where the instruction has one and is written in it."""

    def error(self, message: str) -> ContainerfileError:
        """An error that says where."""
        return ContainerfileError(f"Containerfile line {self.line}: {self.keyword}: {message}")

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """The words of the text, variables replaced and quotes removed; the JSON form's strings likewise."""
        if self.json is not None:
            return [self.expand(word, variables) for word in self.json]
        return _Words(self, self.text, variables, split=True).all()

    def value(self, variables: Mapping[str, str]) -> str:
        """The text as one value. Raises ContainerfileError if it is empty."""
        value = self.expand(self.text, variables)
        if not value:
            raise self.error("a value is missing")
        return value

    def expand(self, text: str, variables: Mapping[str, str]) -> str:
        """`text` with variables replaced and quotes removed."""
        return "".join(_Words(self, text, variables, split=False).all())

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The text as `key=value ...`, or as the old `key value`."""
        first, *rest = self.text.split(None, 1)
        if "=" not in first:
            if not rest:
                raise self.error(f"expected key=value, found {self.text!r}")
            return {self.expand(first, variables): self.expand(rest[0], variables)}
        pairs = {}
        for word in self.words(variables):
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise self.error(f"expected key=value, found {word!r}")
            pairs[key] = value
        return pairs


def parse(text: str) -> list[Instruction]:
    """Read a Containerfile. Raises ContainerfileError naming line, instruction and remedy."""
    instructions = [_instruction(line, content) for line, content in _logical_lines(text)]
    stages = [instruction for instruction in instructions if instruction.keyword == "FROM"]
    if not stages:
        raise ContainerfileError("Containerfile: there is no FROM; write FROM scratch for an empty start")
    for instruction in stages[1:]:
        raise instruction.error("only one stage is supported; build the other image first, FROM its name")
    for instruction in instructions[: instructions.index(stages[0])]:
        if instruction.keyword != "ARG":
            raise instruction.error("only ARG may come before FROM")
    return instructions


def _logical_lines(text: str) -> list[tuple[int, str]]:
    lines: list[tuple[int, str]] = []
    start = 0
    parts: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("#"):
            directive = _DIRECTIVE.fullmatch(stripped)
            if directive and not lines and not parts and directive[1] != "\\":
                raise ContainerfileError(f"Containerfile line {number}: only the backslash can be the escape")
            continue
        if not stripped:
            continue
        start = start or number
        if stripped.endswith("\\"):
            parts.append(line.rstrip()[:-1])
            continue
        parts.append(line)
        lines.append((start, "".join(parts).strip()))
        start, parts = 0, []
    if parts and "".join(parts).strip():
        lines.append((start, "".join(parts).strip()))
    return lines


def _instruction(line: int, content: str) -> Instruction:
    match = _LINE.fullmatch(content)
    if match is None:
        raise ContainerfileError(f"Containerfile line {line}: not an instruction: {content[:60]!r}")
    keyword, text = match[1].upper(), (match[2] or "").strip()
    bare = Instruction(line, keyword, {}, text, None)
    if keyword not in INSTRUCTIONS:
        remedy = _REMEDIES.get(keyword, f"known are {', '.join(sorted(INSTRUCTIONS))}")
        raise bare.error(f"not supported here; {remedy}")
    flags: dict[str, str] = {}
    while flag := _FLAG.match(text):
        name, value = flag[1], flag[2]
        if name not in _FLAGS.get(keyword, ()):
            raise bare.error(f"--{name} is not supported; {_FLAG_REMEDIES.get(name, 'leave it out')}")
        if not value:
            raise bare.error(f"--{name} needs a value: --{name}=...")
        flags[name], text = value, text[flag.end() :]
    if not text:
        raise bare.error("arguments are missing")
    if keyword in {"COPY", "ADD"} and _HEREDOC.search(text):
        raise bare.error("here-documents are not supported; put the text into a file of the context")
    return Instruction(line, keyword, flags, text, _json_form(text) if keyword in _JSON_FORM else None)


def _json_form(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON array; None if it is none, which then means the shell form, as in Docker."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return tuple(value)


class _Words:
    """The shell's quoting rules, as far as Containerfiles have them."""

    def __init__(self, where: Instruction, text: str, variables: Mapping[str, str], *, split: bool) -> None:
        self._where = where
        self._text = text
        self._variables = variables
        self._split = split
        self._position = 0

    def all(self) -> list[str]:
        words: list[str] = []
        word: str | None = None
        while self._position < len(self._text):
            mark = self._text[self._position]
            self._position += 1
            if mark.isspace() and self._split:
                if word is not None:
                    words.append(word)
                word = None
                continue
            word = (word or "") + self._piece(mark)
        if word is not None:
            words.append(word)
        return words

    def _piece(self, mark: str) -> str:
        if mark == "'":
            end = self._find("'")
            piece, self._position = self._text[self._position : end], end + 1
            return piece
        if mark == '"':
            return self._double_quoted()
        if mark == "\\":
            return self._escaped(keep_unless=None)
        return self._variable() if mark == "$" else mark

    def _double_quoted(self) -> str:
        piece = ""
        while True:
            if self._position >= len(self._text):
                raise self._where.error('a closing " is missing')
            mark = self._text[self._position]
            self._position += 1
            if mark == '"':
                return piece
            if mark == "\\":
                piece += self._escaped(keep_unless='"$\\')
            else:
                piece += self._variable() if mark == "$" else mark

    def _escaped(self, *, keep_unless: str | None) -> str:
        following = self._text[self._position : self._position + 1]
        if not following or (keep_unless is not None and following not in keep_unless):
            return "\\"
        self._position += 1
        return following

    def _variable(self) -> str:
        if self._text.startswith("{", self._position):
            match = _BRACED.match(self._text, self._position)
            if match is None:
                raise self._where.error("expected ${NAME}, ${NAME:-default} or ${NAME:+other} after $")
            self._position = match.end()
            value = self._variables.get(match[1], "")
            if match[2] == "-":
                return value or match[3]
            if match[2] == "+":
                return match[3] if value else ""
            return value
        match = _NAME.match(self._text, self._position)
        if match is None:
            return "$"
        self._position = match.end()
        return self._variables.get(match[0], "")

    def _find(self, mark: str) -> int:
        end = self._text.find(mark, self._position)
        if end < 0:
            raise self._where.error(f"a closing {mark} is missing")
        return end
