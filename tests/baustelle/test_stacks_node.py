"""Stacks of layers: what overlayfs shows is what applying them makes."""

import itertools
import os
import posixpath
import stat
import sys

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from baustelle.removal import remove_tree
from baustelle.restack import restack
from baustelle.unpack import UnpackError, Whiteouts
from tests.baustelle.test_unpack_node import Overlay

pytestmark = [pytest.mark.node, pytest.mark.skipif(sys.platform != "linux", reason="overlayfs is Linux's")]


def stack(work, layers, put_layer, list_tree):
    """The tree of layers, lowest first, both ways; None for one that is refused."""
    applied, merged, empty = (work / name for name in ("applied", "merged", "empty"))
    for path in (applied, merged, empty):
        path.mkdir()
    return _applied(applied, layers, put_layer, list_tree), _merged(work, layers, put_layer, list_tree)


def _applied(root, layers, put_layer, list_tree):
    try:
        for layer in layers:
            put_layer(root, layer)
    except UnpackError:
        return None
    return told(list_tree(root), root)


def _merged(work, layers, put_layer, list_tree):
    directories = []
    try:
        for number, layer in enumerate(layers):
            directory = work / f"layer{number}"
            directory.mkdir()
            unpacked = put_layer(directory, layer, Whiteouts.STACKED)
            restack(directory, unpacked.tree, directories[::-1])
            directories.append(directory)
    except UnpackError:
        return None
    while directories and any(is_opaque(one) for one in directories[1:]):
        directories.pop(0)
    with Overlay(work / "merged", [work / "empty", *directories]):
        ghosts = {
            os.path.join(folder, name)  # noqa: PTH118
            for folder, below, files in os.walk(work / "merged")
            for name in [*below, *files]
            if not os.path.lexists(os.path.join(folder, name))  # noqa: PTH118
        }
        assert not ghosts
        return told(list_tree(work / "merged"), work / "merged")


def is_opaque(directory):
    try:
        return os.getxattr(directory, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def told(listing, root):
    """Without the times of directories; with the names that are one file, instead of their number."""
    names = {}
    for path in listing:
        info = os.lstat(os.path.join(root, path))  # noqa: PTH118
        if not stat.S_ISDIR(info.st_mode):
            names.setdefault((info.st_dev, info.st_ino), set()).add(path)
    one = {path: sorted(group) for group in names.values() for path in group}
    found = {
        path: value[:6] + (() if stat.S_ISDIR(int(value[0], 8)) else (value[6], one[path]))
        for path, value in listing.items()
    }
    info = os.lstat(root)
    return found | {"": (oct(info.st_mode), info.st_uid, info.st_gid)}


NAMES = ["a", "a/b", "a/b/c", "a/d", "e", "e/b"]
OWN = st.tuples(st.sampled_from(["file", "directory"]), st.sampled_from(NAMES))
WHITEOUT = st.tuples(
    st.just("file"),
    st.sampled_from(
        [posixpath.join(*posixpath.split(name)[:-1], f".wh.{posixpath.basename(name)}") for name in NAMES]
        + [".wh..wh..opq", "a/.wh..wh..opq", "a/b/.wh..wh..opq", "e/.wh..wh..opq"]
    ),
)
HARD_LINK = st.tuples(st.just("hard link"), st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)))
THROUGH = st.sampled_from(["link", "to-link", "a/loop", "nowhere", "absolute"])
VIA_LINK = st.one_of(
    st.tuples(st.sampled_from(["file", "directory"]), st.sampled_from(NAMES)),
    st.tuples(st.just("file"), st.sampled_from([".wh.b", ".wh.a", "a/.wh.b", ".wh..wh..opq"])),
)
OPTIONS = {
    "max_examples": 100,
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


def built(new_layer, layers):
    archives = []
    for number, entries in enumerate(layers):
        layer = new_layer()
        for position, (kind, name) in enumerate(entries):
            mode = 0o700 + (number * 8 + position) % 64
            if kind == "file":
                layer.file(name, b"%d.%d" % (number, position), mtime=number + 1, mode=mode, uid=number)
            elif kind == "directory":
                layer.directory(name, mtime=number + 1, mode=mode, uid=number)
            elif isinstance(name, tuple):
                layer.hard_link(*name)
            else:
                layer.symlink(kind, name, mtime=number + 1)
        archives.append(layer.bytes())
    return archives


@settings(**OPTIONS)
@given(st.lists(st.lists(st.one_of(OWN, WHITEOUT), max_size=6), min_size=1, max_size=4))
def test_stacks(tmp_path_factory, new_layer, put_layer, list_tree, layers):
    work = tmp_path_factory.mktemp("case")
    try:
        applied, merged = stack(work, built(new_layer, layers), put_layer, list_tree)
    finally:
        remove_tree(work)
    assert applied == merged


@settings(**OPTIONS)
@given(
    st.sampled_from([[], [("file", "a/b/c"), ("file", "a/d"), ("hard link", ("e", "a/d"))]]),
    st.lists(st.lists(st.one_of(OWN, HARD_LINK, HARD_LINK, WHITEOUT), max_size=4), min_size=1, max_size=4),
)
def test_hard_links_to_files_of_layers_below(tmp_path_factory, new_layer, put_layer, list_tree, base, layers):
    work = tmp_path_factory.mktemp("case")
    try:
        applied, merged = stack(work, built(new_layer, [base, *layers]), put_layer, list_tree)
    finally:
        remove_tree(work)
    assert applied == merged


@settings(**OPTIONS)
@given(
    st.tuples(*[st.sampled_from(["a", "/a/b", "../e", "a/../a", "e", "missing/x", "/a/loop"])] * 3),
    st.lists(
        st.one_of(
            st.lists(st.one_of(OWN, WHITEOUT), max_size=4), st.tuples(THROUGH, st.lists(VIA_LINK, max_size=4))
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_layers_that_go_through_links_of_those_below(
    tmp_path_factory, new_layer, put_layer, list_tree, targets, layers
):
    """A layer names what it has by one path only."""
    loop, nowhere, absolute = targets
    told_layers = []
    base = [
        *[("directory", "a"), ("file", "a/b/x"), ("file", "e/b")],
        *[("link", "e"), ("to-link", "link"), ("a/loop", loop), ("nowhere", nowhere), ("absolute", absolute)],
    ]
    for layer in layers:
        match layer:
            case (str(link), names):
                entries = [(kind, f"{link}/{name}") for kind, name in names]
            case _:
                entries = layer
        told_layers.append(entries)
    work = tmp_path_factory.mktemp("case")
    try:
        applied, merged = stack(work, built(new_layer, [base, *told_layers]), put_layer, list_tree)
    finally:
        remove_tree(work)
    assert applied == merged


def via(names):
    return st.builds(posixpath.join, THROUGH, names)


LINKS = [
    *[("directory", "a"), ("file", "a/b/x"), ("file", "e/b"), ("hard link", ("f", "e/b"))],
    *[("link", "e"), ("to-link", "link"), ("a/loop", "/e"), ("nowhere", "missing/x"), ("absolute", "/a")],
]


@settings(**OPTIONS)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.tuples(
                    st.just("hard link"),
                    st.tuples(
                        st.one_of(st.sampled_from(["h", "a/h", "e/h"]), via(st.just("h"))),
                        st.one_of(
                            via(st.sampled_from(["b", "b/x"])), st.sampled_from(["f", "link", "e/b", "h"])
                        ),
                    ),
                ),
                st.tuples(
                    st.sampled_from(["file", "directory"]), st.sampled_from(["a/b", "a/b/c", "a/d", "e/b"])
                ),
                st.tuples(
                    st.just("file"),
                    st.sampled_from([".wh.f", "a/.wh.b", "a/b/.wh.x", "e/.wh.b", "e/.wh..wh..opq"]),
                ),
            ),
            max_size=4,
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_hard_links_through_links_of_layers_below(tmp_path_factory, new_layer, put_layer, list_tree, layers):
    work = tmp_path_factory.mktemp("case")
    try:
        applied, merged = stack(work, built(new_layer, [LINKS, *layers]), put_layer, list_tree)
    finally:
        remove_tree(work)
    assert applied == merged


@settings(**OPTIONS)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.tuples(
                    st.sampled_from(["file", "directory"]),
                    st.one_of(via(st.sampled_from(["b", "c"])), st.sampled_from(["e/b", "e/c", "a/b"])),
                ),
            ),
            max_size=5,
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_of_a_file_named_twice_the_last_wins(tmp_path_factory, new_layer, put_layer, list_tree, layers):
    work = tmp_path_factory.mktemp("case")
    try:
        applied, merged = stack(work, built(new_layer, [LINKS, *layers]), put_layer, list_tree)
    finally:
        remove_tree(work)
    assert applied == merged


def model(layers):
    """Directories and files by path, after the words of layer.md; None for what is refused.

    That is an entry below a file of its layer, and a hard link to no file. Files are numbers, the same for the same file.
    """
    numbers = itertools.count()
    files = {}
    for entries in layers:
        mine = set()
        for kind, path in entries:
            if kind == "hard link":
                continue
            above, name = posixpath.split(path)
            if name == ".wh..wh..opq":
                files = {
                    one: kind for one, kind in files.items() if above and not one.startswith(f"{above}/")
                }
            elif name.startswith(".wh."):
                gone = posixpath.join(above, name[4:])
                files = {one: kind for one, kind in files.items() if not f"{one}/".startswith(f"{gone}/")}
        for kind, named in entries:
            path, target = named if kind == "hard link" else (named, None)
            parts = path.split("/")
            opaque = parts[-1] == ".wh..wh..opq"
            if parts[-1].startswith(".wh.") and not opaque:
                continue
            for depth in range(1, len(parts)):
                above = "/".join(parts[:depth])
                if files.get(above, "directory") != "directory" and above in mine:
                    return None
                files[above] = "directory"
                mine.add(above)
            file = files.get(target, "directory") if kind == "hard link" else next(numbers)
            if file == "directory":
                return None
            if not opaque:
                if kind != "directory":
                    files = {one: found for one, found in files.items() if not one.startswith(f"{path}/")}
                    if kind == "hard link" and target not in files:
                        return None
                files[path] = "directory" if kind == "directory" else file
                mine.add(path)
    return files


@settings(**OPTIONS)
@given(
    st.lists(
        st.one_of(
            st.lists(st.one_of(OWN, WHITEOUT), max_size=6), st.lists(st.one_of(OWN, HARD_LINK), max_size=5)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_stacks_are_what_the_specification_says(tmp_path_factory, new_layer, put_layer, list_tree, layers):
    # A whiteout of what is below a file of a layer below is said nothing of.
    named = [
        {
            name if kind == "file" else name[0]
            for kind, name in entries
            if kind == "hard link" or (kind == "file" and "/.wh." not in f"/{name}")
        }
        for entries in layers
    ]
    for number, entries in enumerate(layers):
        above = {posixpath.dirname(name) for kind, name in entries if kind == "file" and "/.wh." in name}
        assume(not any(above & names for names in named[: number + 1]))
    expected = model(layers)
    work = tmp_path_factory.mktemp("case")
    try:
        both = stack(work, built(new_layer, layers), put_layer, list_tree)
    finally:
        remove_tree(work)
    if expected is None:
        assert both == (None, None)
        return
    files = {}
    for path, file in expected.items():
        files.setdefault(file, []).append(path)
    for found in both:
        kinds = {
            path: "directory" if value[0].startswith("0o4") else value[7] for path, value in found.items()
        }
        del kinds[""]
        assert kinds == {
            path: file if file == "directory" else sorted(files[file]) for path, file in expected.items()
        }
