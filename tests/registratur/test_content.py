import os

import pytest

from registratur import ContentStore, DigestMismatchError, InvalidDigestError, NotFoundError, compute_digest

DATA = b"blob"
DIGEST = compute_digest(DATA)


def test_write_and_read(store):
    assert not store.has(DIGEST)
    store.write(DIGEST, DATA)
    assert store.has(DIGEST)
    assert store.read(DIGEST) == DATA
    assert store.size(DIGEST) == 4
    assert store.path(DIGEST) == store.root / "blobs" / "sha256" / DIGEST.removeprefix("sha256:")
    assert list(store.digests()) == [DIGEST]
    assert list((store.root / "ingest").iterdir()) == []


def test_survives_a_reopening(store):
    store.write(DIGEST, DATA)
    assert ContentStore(store.root).read(DIGEST) == DATA


def test_sha512(store):
    digest = compute_digest(DATA, "sha512")
    store.write(digest, DATA)
    assert store.read(digest) == DATA


def test_refuses_other_content(store):
    with pytest.raises(DigestMismatchError):
        store.write(DIGEST, b"blub")
    assert list(store.digests()) == []


def test_a_damaged_blob_is_noticed_and_can_be_replaced(store):
    store.write(DIGEST, DATA)
    store.path(DIGEST).write_bytes(b"blub")
    with pytest.raises(DigestMismatchError):
        store.read(DIGEST)
    store.write(DIGEST, DATA)
    assert store.read(DIGEST) == DATA


def test_missing(store):
    for method in (store.read, store.size):
        with pytest.raises(NotFoundError, match="is not in the content store"):
            method(DIGEST)
    store.delete(DIGEST)


def test_delete(store):
    store.write(DIGEST, DATA)
    store.delete(DIGEST)
    assert not store.has(DIGEST)


@pytest.mark.parametrize("digest", ["sha256:../../x", "sha1:" + "0" * 40, "", "/etc/passwd"])
def test_no_path_leads_out(store, digest):
    with pytest.raises(InvalidDigestError):
        store.path(digest)


def test_clean_removes_what_a_crash_left(store, monkeypatch):
    def crash(_):
        raise OSError(28, "disk full")

    (store.root / "ingest" / "half").write_bytes(b"bl")
    (store.root / "blobs" / "sha256").mkdir(parents=True)
    (store.root / "blobs" / "sha256" / "not-a-digest").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="disk full"):
            store.write(DIGEST, DATA)
    assert store.clean() == 1, "a failed write tidies up after itself; only the crash leaves a file"
    assert list(store.digests()) == []
