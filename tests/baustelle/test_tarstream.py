"""The tar reader against the standard library's writer, sparse formats by hand, and noise."""
# ruff: noqa: A002, PT017 - errors are looked at where they may or may not come

import io
import random
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baustelle.errors import CorruptLayerError
from baustelle.tarstream import TarStream

NAMES = st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=120).filter(
    lambda name: name.strip("./")
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@st.composite
def members(draw):
    info = tarfile.TarInfo(draw(PATHS))
    info.type = draw(
        st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.LNKTYPE])
    )
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 2**32))
    info.gid = draw(st.integers(0, 2**21 + 5))
    info.mtime = draw(st.integers(-(2**33), 2**34))
    data = b""
    if info.type == tarfile.REGTYPE:
        data = draw(st.binary(max_size=1500))
        info.size = len(data)
    elif info.type in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        info.linkname = draw(PATHS)
    elif info.type == tarfile.CHRTYPE:
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20))
    return info, data


def read(data, cut=lambda data: [data]):
    found = []
    archive = TarStream(iter(cut(data)))
    for entry in archive:
        content = []
        if entry.extents is None:
            archive.copy_data(entry.stored, lambda view, content=content: content.append(bytes(view)))
        found.append((entry, b"".join(content)))
    return found


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(members(), max_size=4),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(0, 99),
)
def test_round_trip(wanted, format, seed):
    chance = random.Random(seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, data in wanted:
            tar.addfile(info, io.BytesIO(data))

    def cut(data):
        while data:
            length = chance.randint(1, 3000)
            yield data[:length]
            data = data[length:]

    for (info, data), (entry, content) in zip(wanted, read(buffer.getvalue(), cut), strict=True):
        assert entry.name.decode().rstrip("/") == info.name
        assert (entry.type, entry.mode, entry.uid, entry.gid) == (info.type, info.mode, info.uid, info.gid)
        assert entry.mtime_ns == info.mtime * 10**9
        assert (entry.link.decode(), entry.device) == (info.linkname, (info.devmajor, info.devminor))
        assert content == data


SAMPLE = io.BytesIO()
with tarfile.open(fileobj=SAMPLE, mode="w", format=tarfile.PAX_FORMAT) as _tar:
    for _name in ("short", "l" * 300):
        _info = tarfile.TarInfo(_name)
        _info.size = 700
        _info.pax_headers = {"SCHILY.xattr.user.x": "y", "mtime": "1.5"}
        _tar.addfile(_info, io.BytesIO(bytes(range(70)) * 10))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE.getvalue()) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, 9000),
)
def test_damage_is_refused_or_harmless(changes, length):
    data = bytearray(SAMPLE.getvalue())
    for position, value in changes:
        data[position] = value
    try:
        read(bytes(data[:length]))
    except CorruptLayerError as error:
        assert str(error).startswith("layer")


@given(st.binary(max_size=2000))
def test_noise_is_refused(data):
    if data.strip(b"\0"):
        with pytest.raises(CorruptLayerError):
            if not read(data) and not data[:512].strip(b"\0"):
                raise CorruptLayerError("an archive that ends at once; what follows is not its business")


def member(name, data=b"", pax=None, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.pax_headers = pax or {}
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


DATA = random.Random(1).randbytes(1536)
SPARSE = {
    "0.1": member("f", DATA, {"GNU.sparse.size": "10000", "GNU.sparse.map": "0,512,4096,1024,10000,0"}),
    "1.0": member(
        "GNUSparseFile.0/f",
        b"3\n0\n512\n4096\n1024\n10000\n0\n".ljust(512, b"\0") + DATA,
        {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "f",
            "GNU.sparse.realsize": "10000",
        },
    ),
}


def pax_record(key, value):
    length = len(key) + len(value) + 3
    while len(record := f"{length} {key}={value}\n") != length:
        length = len(record)
    return record.encode()


def _zero_zero():
    numbers = ((0, 512), (4096, 1024), (10000, 0))
    records = [pax_record("GNU.sparse.size", "10000"), pax_record("GNU.sparse.numblocks", "3")]
    for offset, length in numbers:
        records += [
            pax_record("GNU.sparse.offset", str(offset)),
            pax_record("GNU.sparse.numbytes", str(length)),
        ]
    return member("x", b"".join(records), type=b"x") + member("f", DATA)


def _old_gnu():
    info = tarfile.TarInfo("f")
    info.size = len(DATA)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"

    def number(value):
        return b"%011o\0" % value

    numbers = [0, 512, 4096, 256, 4352, 256, 4608, 256]
    header[386:482] = b"".join(map(number, numbers))
    header[482] = 1
    header[483:495] = number(10000)
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    return bytes(header) + b"".join(map(number, [4864, 256, 10000, 0])).ljust(512, b"\0") + DATA


SPARSE["0.0"] = _zero_zero()
SPARSE["old GNU"] = _old_gnu()


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_files(root, put_layer, kind):
    result = put_layer(root, SPARSE[kind] + member("after", b"ok"))
    assert (root / "f").read_bytes() == DATA[:512] + bytes(4096 - 512) + DATA[512:] + bytes(
        10000 - 4096 - 1024
    )
    assert (root / "after").read_bytes() == b"ok"
    assert result.size == 1536 + 2


@pytest.mark.parametrize(
    "sparse_map", ["0,512,100,512", "0,99999999", "5", "0,-1", "a,b", "0,512,9999,1024", "0," + "9" * 30]
)
def test_impossible_sparse_maps(sparse_map):
    with pytest.raises(CorruptLayerError, match="sparse map"):
        read(member("f", DATA, {"GNU.sparse.size": "10000", "GNU.sparse.map": sparse_map}))


def test_a_sparse_map_that_does_not_end():
    with pytest.raises(CorruptLayerError, match="does not end"):
        read(member("f", b"9999\n" + b"0\n" * 200, {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1"}))


@pytest.mark.parametrize("body", [b"5 a=b\n", b"99 a=b\n", b"x a=b\n", b"6 ab\n\n", b"0 a=b\n", b"garbage"])
def test_damaged_pax_records(body):
    with pytest.raises(CorruptLayerError, match="pax"):
        read(member("x", body, type=b"x") + member("f"))


def test_global_headers_hold_until_overruled():
    headers = member("g", pax_record("mtime", "-1.25") + pax_record("path", "all"), type=b"g")
    own = member("x", pax_record("path", "mine"), type=b"x")
    names = [(entry.name, entry.mtime_ns) for entry, _ in read(headers + own + member("f") + member("g"))]
    assert names == [(b"mine", -1_250_000_000), (b"all", -1_250_000_000)]


def test_file_flags():
    flagged, plain = read(member("f", pax={"SCHILY.fflags": "schg,uarch"}) + member("g"))
    assert (flagged[0].flags, plain[0].flags) == (b"schg,uarch", b"")


def test_unknown_kinds_are_named():
    with pytest.raises(CorruptLayerError, match=r"'odd'.*type b'Z'"):
        read(member("odd", type=b"Z"))


def test_an_extended_header_without_its_file():
    with pytest.raises(CorruptLayerError, match="between"):
        read(member("x", pax_record("path", "p"), type=b"x"))


def test_huge_extended_headers_are_refused():
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 2**33
    with pytest.raises(CorruptLayerError, match="limit"):
        read(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
