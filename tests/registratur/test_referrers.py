"""What refers to a manifest, from registries that list it themselves and from others."""

import json

import pytest
from aiohttp import web

from registratur import Descriptor, MalformedContentError, compute_digest, media
from registratur.referrers import fallback_tag, next_page

SUBJECT = "sha256:" + "5" * 64


def entry(n, kind="sig"):
    return {
        "mediaType": media.OCI_MANIFEST,
        "digest": compute_digest(b"%d" % n),
        "size": n,
        "artifactType": kind,
        "annotations": {"n": str(n)},
    }


def digests(found):
    return [one.digest for one in found]


async def test_the_registry_s_own_list_page_by_page(registry, client):
    async def pages(request):
        page = int(request.query.get("page", "0"))
        assert request.path == f"/v2/team/app/referrers/{SUBJECT}"
        headers = {"Link": f'<{request.path}?page={page + 1}>; rel="next"'} if page < 2 else {}
        index = {
            "schemaVersion": 2,
            "mediaType": media.OCI_INDEX,
            "manifests": [entry(page, f"kind{page % 2}")],
        }
        return web.json_response(index, headers=headers)

    registry.hook = pages
    found = await client.referrers(registry.ref(), SUBJECT)
    assert digests(found) == [compute_digest(b"0"), compute_digest(b"1"), compute_digest(b"2")]
    assert found[0].annotations == {"n": "0"}
    assert digests(await client.referrers(registry.ref(), SUBJECT, "kind1")) == [compute_digest(b"1")]


async def test_a_list_without_end(registry, client):
    async def page(request):
        index = {"schemaVersion": 2, "manifests": []}
        return web.json_response(index, headers={"Link": f'<{request.path}>; rel="next"'})

    registry.hook = page
    with pytest.raises(MalformedContentError, match="pages"):
        await client.referrers(registry.ref(), SUBJECT)


async def test_the_tag_of_a_registry_without_the_list(registry, client, kit):
    assert await client.referrers(registry.ref(), SUBJECT) == ()
    registry.manifests[fallback_tag(SUBJECT)] = kit.index(entry(1), entry(2, "sbom"))
    assert len(await client.referrers(registry.ref(), SUBJECT)) == 2
    assert digests(await client.referrers(registry.ref(), SUBJECT, "sbom")) == [compute_digest(b"2")]


async def test_no_index_there(registry, client, kit):
    registry.manifests[fallback_tag(SUBJECT)] = kit.image().manifest
    with pytest.raises(MalformedContentError, match="is no index"):
        await client.referrers(registry.ref(), SUBJECT)


@pytest.mark.parametrize("lists", [True, False], ids=["with the API", "without"])
async def test_a_push_about_another_manifest_keeps_the_list(registry, client, kit, lists):
    async def take(request):
        if request.method != "PUT":
            return None
        data = await request.read()
        registry.manifests[request.match_info["name"]] = data
        return web.Response(status=201, headers={"OCI-Subject": SUBJECT} if lists else {})

    registry.hook = take
    pushed = []
    for n in range(2):
        document = json.loads(kit.image().manifest)
        document |= {"subject": {"mediaType": media.OCI_MANIFEST, "digest": SUBJECT, "size": 1}}
        document |= {"annotations": {"n": str(n)}} | ({"artifactType": "sig"} if n else {})
        data = json.dumps(document).encode()
        manifest = Descriptor(media.OCI_MANIFEST, compute_digest(data), len(data))
        pushed.append(manifest.digest)
        for _ in range(2):
            await client.put_manifest(registry.ref(), manifest, data, manifest.digest)
    if lists:
        assert fallback_tag(SUBJECT) not in registry.manifests
        return
    found = await client.referrers(registry.ref(), SUBJECT)
    assert digests(found) == pushed
    assert [one.artifact_type for one in found] == [media.OCI_CONFIG, "sig"]
    assert found[1].annotations == {"n": "1"}


@pytest.mark.parametrize(
    ("header", "url"),
    [
        ('<https://r/next>; rel="next"', "https://r/next"),
        ("</next?a=1,2>; rel=next", "/next?a=1,2"),
        ('</first>; rel="first", </next>; title="x"; rel="next"', "/next"),
        ('</first>; rel="first"', None),
        ("nonsense", None),
    ],
)
def test_links(header, url):
    assert next_page([header]) == url
    assert next_page([]) is None


def test_the_tag_is_one():
    assert fallback_tag(SUBJECT) == "sha256-" + "5" * 64
    assert len(fallback_tag("sha512:" + "a" * 128)) <= 128
