"""Containerfiles to images, and images to directories and registries."""
# ruff: noqa: PTH115 - names as bytes, and the words of tarfile

import asyncio
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.request
from functools import partial

import pytest

from baustelle.__main__ import main
from baustelle.build import build
from baustelle.bundle import ImageDefaults
from baustelle.errors import BuildError, ContainerfileError, LayoutError
from baustelle.layout import ImageLayout, export_registry_tree
from baustelle.unpack import Whiteouts, unpack
from registratur import ImageConfig, Platform, parse_manifest


@pytest.fixture
def context(tmp_path):
    path = tmp_path / "context"
    (path / "dir/sub").mkdir(parents=True)
    (path / "dir/f").write_text("f")
    (path / "dir/sub/g").write_text("g")
    (path / "dir/link").symlink_to("sub/./g")
    (path / "tool").write_text("#!/bin/sh")
    (path / "tool").chmod(0o755)
    return path


@pytest.fixture
def layout(tmp_path):
    return ImageLayout(tmp_path / "layout")


@pytest.fixture
def made(context, layout):
    def make(text, **options):
        (context / "Containerfile").write_text(text)
        return build(context / "Containerfile", context, layout=layout, **options)

    return make


def unpacked(image, root):
    root.mkdir()
    for descriptor, diff_id in zip(image.layers, image.diff_ids, strict=True):
        with image.layout.path(descriptor["digest"]).open("rb") as stream:
            assert unpack(stream, root, whiteouts=Whiteouts.APPLY).diff_id == diff_id
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_the_config(made):
    image = made(
        """
        ARG BASE=scratch
        FROM $BASE
        ARG V=1
        ENV A=$V B="x y"
        ENV A2=${A}2
        WORKDIR /w
        WORKDIR sub
        USER 10:20
        LABEL l=$V
        EXPOSE 80 53/UDP
        VOLUME /data
        STOPSIGNAL SIGQUIT
        ENTRYPOINT ["/e", "$A"]
        CMD echo $A
        """,
        args={"V": "7"},
        platform=Platform("freebsd", "arm64"),
    )
    document = image.config
    assert ImageDefaults.from_config(document) == ImageDefaults(
        ("/e", "$A"),
        ("/bin/sh", "-c", "echo $A"),
        ("A=7", "B=x y", "A2=72"),
        "/w/sub",
        "10:20",
        "SIGQUIT",
        ("/data",),
    )
    assert document["config"]["Labels"] == {"l": "7"}
    assert document["config"]["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    config = ImageConfig.parse(image.layout.read(image.manifest["config"]["digest"]))
    assert (config.platform, list(config.diff_ids)) == (Platform("freebsd", "arm64"), image.diff_ids)
    assert len(image.layers) == sum("empty_layer" not in entry for entry in document["history"])


@pytest.mark.parametrize(
    ("copy", "expected"),
    [
        ("COPY tool /bin/", ["bin", "bin/tool"]),
        ("COPY tool /bin/other", ["bin", "bin/other"]),
        ("COPY dir/f tool /d", ["d", "d/f", "d/tool"]),
        ("COPY dir /d", ["d", "d/f", "d/link", "d/sub", "d/sub/g"]),
        ("COPY dir/sub /", ["g"]),
        ("COPY t* di?/f /d/", ["d", "d/f", "d/tool"]),
        ('COPY ["tool", "/a b"]', ["a b"]),
        ("WORKDIR /w\nCOPY tool .", ["w", "w/tool"]),
        ("WORKDIR /w\nCOPY tool ../x/y", ["w", "x", "x/y"]),
        ("ADD tool /t", ["t"]),
        ("COPY dir/link /x", ["x"]),
        ("COPY ../../tool /t", ["t"]),
    ],
)
def test_copy(made, tmp_path, copy, expected):
    assert unpacked(made(f"FROM scratch\n{copy}"), tmp_path / "root") == expected


def test_content_modes_and_links(made, tmp_path):
    unpacked(made("FROM scratch\nCOPY dir tool /\nCOPY --chmod=0604 tool /t"), tmp_path / "root")
    assert (tmp_path / "root/sub/g").read_text() == "g"
    assert os.readlink(tmp_path / "root/link") == "sub/./g"
    assert [(tmp_path / "root" / name).stat().st_mode & 0o777 for name in ("tool", "t")] == [0o755, 0o604]
    assert (tmp_path / "root/f").stat().st_mtime == 0


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("COPY nowhere /x", ContainerfileError, "nowhere in the context"),
        ("COPY *.c /x", ContainerfileError, r"nothing in the context .* matches \*\.c"),
        ("COPY out /x", ContainerfileError, "out in the context"),
        ("COPY tool", ContainerfileError, "sources and a destination"),
        ("COPY --chown=user tool /x", ContainerfileError, "only numbers"),
        ("COPY --chmod=u+x tool /x", ContainerfileError, "octal"),
        ("ADD https://host/x /x", ContainerfileError, "nothing is fetched"),
        ("ADD a.tar.gz /x", ContainerfileError, "unpack it"),
        ("EXPOSE http", ContainerfileError, "no port"),
        ("STOPSIGNAL NOPE", ContainerfileError, "no signal"),
        ("COPY pipe /x", BuildError, "only files, directories and links"),
    ],
)
def test_refusals(made, context, line, error, message):
    (context / "out").symlink_to("/etc/passwd")
    os.mkfifo(context / "pipe")
    with pytest.raises(error, match=message):
        made(f"FROM scratch\n{line}")


def test_undeclared_arguments_and_ignore_files(made, context):
    with pytest.raises(BuildError, match="no ARG X"):
        made("FROM scratch", args={"X": "1"})
    (context / ".dockerignore").write_text("x")
    with pytest.raises(ContainerfileError, match="dockerignore"):
        made("FROM scratch\nCOPY tool /")


def test_the_same_input_gives_the_same_image(made, context, layout, tmp_path, monkeypatch):
    text = "FROM scratch\nCOPY dir /d\nENV a=b"
    first = made(text)
    os.utime(context / "dir/f", (1, 1))
    again = build(context / "Containerfile", context, layout=ImageLayout(tmp_path / "other"))
    assert again.manifest_blob == first.manifest_blob
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    later = made(text)
    assert later.manifest_blob != first.manifest_blob
    assert later.config["created"] == "2023-11-14T22:13:20Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(BuildError, match="SOURCE_DATE_EPOCH"):
        made(text)


def test_from_another_image(made, layout, tmp_path):
    base = made(
        'FROM scratch\nENV A=1\nCOPY dir /usr/lib\nCMD ["/x"]\nENTRYPOINT ["/e"]',
        platform=Platform("freebsd", "arm64"),
    )
    layout.tag(base, "base:latest", "base:1")
    image = made("FROM base\nENV B=${A}2\nCOPY tool /usr/lib")
    assert image.layers[:1] == base.layers
    assert image.config["os"] == "freebsd"
    assert image.config["config"]["Env"] == ["A=1", "B=12"]
    assert image.config["config"]["Cmd"] == ["/x"]
    assert "usr/lib/tool" in unpacked(image, tmp_path / "root")
    assert "Cmd" not in made('FROM base:1\nENTRYPOINT ["/other"]').config["config"]
    with pytest.raises(LayoutError, match=r"'missing:latest' \(there are: base:1, base:latest\)"):
        made("FROM missing")


def test_links_and_modes_of_the_base_are_kept(made, context, layout, tmp_path):
    (context / "base/usr/lib").mkdir(parents=True)
    (context / "base/usr/lib").chmod(0o711)
    (context / "base/lib").symlink_to("usr/lib")
    layout.tag(made("FROM scratch\nCOPY base /"), "base:1")
    names = unpacked(made("FROM base:1\nCOPY tool /lib/tool\nCOPY dir/sub /lib"), tmp_path / "root")
    assert names == ["lib", "usr", "usr/lib", "usr/lib/g", "usr/lib/tool"]
    assert (tmp_path / "root/lib").is_symlink()
    assert (tmp_path / "root/usr/lib").stat().st_mode & 0o777 == 0o711


def test_names_move_to_the_newest_image(made, layout):
    first, second = made("FROM scratch\nENV a=1"), made("FROM scratch\nENV a=2")
    layout.tag(first, "a:1", "a:2")
    layout.tag(second, "a:2")
    assert layout.names() == {"a:1": first.manifest_blob.digest, "a:2": second.manifest_blob.digest}
    assert layout.image("a:2") == second


def test_damage_is_noticed(made, layout):
    image = made("FROM scratch")
    layout.tag(image, "a:1")
    layout.path(image.manifest_blob.digest).write_bytes(b"{}")
    with pytest.raises(LayoutError, match="damaged"):
        layout.image("a:1")
    with pytest.raises(LayoutError, match="no sha256 digest"):
        layout.path("sha256:../../etc/passwd")
    with pytest.raises(LayoutError, match="not a repository name"):
        export_registry_tree(layout, image, "../up", "1", layout.root)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_static_server_is_a_registry(made, layout, tmp_path):
    image = made("FROM scratch\nCOPY tool /")
    export_registry_tree(layout, image, "library/demo", "1.0", tmp_path / "tree")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "tree"))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v2/library/demo"

        def get(path):
            with urllib.request.urlopen(f"{url}/{path}") as answer:
                return answer.read()

        manifest = parse_manifest(get("manifests/1.0"))
        assert get(f"manifests/{image.manifest_blob.digest}") == get("manifests/1.0")
        assert len(get(f"blobs/{manifest.layers[0].digest}")) == manifest.layers[0].size
        assert json.loads(get(f"blobs/{manifest.config.digest}")) == image.config
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_command_line(context, tmp_path, capsys):
    (context / "Containerfile").write_text("FROM scratch\nARG X\nLABEL x=$X\n")
    arguments = ["build", str(context), "--layout", str(tmp_path / "l"), "--tree", str(tmp_path / "t")]
    assert (
        main(
            [
                *arguments,
                "-t",
                "demo",
                "-t",
                "host.example/a/b:2",
                "--arg",
                "X=1",
                "--platform",
                "freebsd/amd64",
            ]
        )
        == 0
    )
    digest = capsys.readouterr().out.strip()
    assert ImageLayout(tmp_path / "l").names() == {"demo:latest": digest, "host.example/a/b:2": digest}
    assert (tmp_path / "t/v2/library/demo/manifests/latest").exists()
    assert (tmp_path / "t/v2/a/b/manifests/2").exists()
    assert main([*arguments, "--arg", "Y=1"]) == 1
    assert "no ARG Y" in capsys.readouterr().err


@pytest.mark.node
@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: umoci and skopeo")
async def test_skopeo_and_umoci_read_the_layout(made, layout, tmp_path, list_tree):
    image = made("FROM scratch\nCOPY --chown=3:4 dir /d\nCOPY tool /d/f")
    layout.tag(image, "demo:1")

    def run(*command):
        return subprocess.run(command, check=True, capture_output=True).stdout

    config = await asyncio.to_thread(run, "skopeo", "inspect", "--config", f"oci:{layout.root}:demo:1")
    assert json.loads(config)["rootfs"]["diff_ids"] == image.diff_ids
    await asyncio.to_thread(
        run, "umoci", "raw", "unpack", "--image", f"{layout.root}:demo:1", str(tmp_path / "umoci")
    )
    unpacked(image, tmp_path / "ours")
    assert list_tree(tmp_path / "ours") == list_tree(tmp_path / "umoci")
