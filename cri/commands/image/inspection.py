"""`image inspect` and `image history`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from cri.commands.image.errors import CommandError
from cri.commands.image.listing import as_json
from cri.commands.image.text import clean, emit, shortened, table

if TYPE_CHECKING:
    from cri.commands.image.daemon import Daemon

_WIDTH = 60
"""Characters of a step's command that are shown."""
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)")


def inspect(daemon: Daemon, name: str) -> None:
    """Print what is known of an image, as crictl does. Raises CommandError."""
    image, info = daemon.status(name)
    document = {"status": as_json(image)} | {key: _parsed(text) for key, text in info.items()}
    emit(json.dumps(document, indent=2) + "\n")


def history(daemon: Daemon, name: str, output: str, *, no_trunc: bool) -> None:
    """Print the steps that made an image, the last one first. Raises CommandError."""
    _, info = daemon.status(name)
    steps = steps_of(_parsed(info.get("info", "")), name)
    if output == "json":
        emit(json.dumps(steps, indent=2) + "\n")
        return
    rows = [
        (
            _TIME.sub(r"\1 \2", step["created"])[:19] or "-",
            clean(step["createdBy"]) if no_trunc else shortened(clean(step["createdBy"]), _WIDTH),
            "no" if step["emptyLayer"] else "yes",
            step["comment"],
        )
        for step in steps
    ]
    emit(table(("CREATED", "CREATED BY", "LAYER", "COMMENT"), rows))


def steps_of(info: Any, name: str) -> list[dict[str, Any]]:
    """The steps that an image's config tells of, the last one first; text where it has something else. Raises CommandError.

    Source: OCI image-spec, config.md, history. Keys have no case there, as Go has written them.
    """
    config = _any_case(info).get("imagespec")
    if not isinstance(config, dict):
        raise CommandError(f"the daemon tells nothing of the config of image {name}: is it an older release?")
    listed = _any_case(config).get("history") or []
    if not isinstance(listed, list):
        raise CommandError(f"image {name}: the history in its config is no list")
    return [
        {
            "created": _text(one.get("created")),
            "createdBy": _text(one.get("created_by")),
            "author": _text(one.get("author")),
            "comment": _text(one.get("comment")),
            "emptyLayer": one.get("empty_layer") is True,
        }
        for one in map(_any_case, reversed(listed))
    ]


def _any_case(value: Any) -> dict[str, Any]:
    return {key.casefold(): inner for key, inner in value.items()} if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _parsed(text: str) -> Any:
    """What a text of JSON says; the text itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
