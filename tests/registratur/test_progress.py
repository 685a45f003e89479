"""What a pull tells of its layers."""

import itertools

import pytest

from registratur import Client, HostsConfig, LayerEvent, Platform, Progress, Step, pull

LINUX = [Platform("linux", "amd64")]


@pytest.fixture
def told():
    return []


def steps(told, index):
    """The steps of a layer, each once in a row."""
    return [step for step, _ in itertools.groupby(event.step for event in told if event.index == index)]


async def test_each_layer_tells_its_way(registry, client, sink, store, kit, told):
    image = registry.add(kit.image(layers=[kit.gzip(bytes([n]) * 300_000) for n in range(3)]), "1")
    sink.known.add(f"{(await pull(client, registry.ref(), LINUX, kit.sink(), store)).diff_ids[1]}")
    await pull(client, registry.ref(), LINUX, sink, store, progress=told.append)
    assert [(event.step, event.index) for event in told[:3]] == [(Step.WAITING, n) for n in range(3)]
    fetched = [Step.WAITING, Step.FETCHING, Step.FETCHED, Step.DONE]
    assert [steps(told, n) for n in range(3)] == [fetched, [Step.WAITING, Step.PRESENT], fetched]
    assert all(event.count == 3 and event.layer.size == len(image.layers[event.index]) for event in told)
    for index in (0, 2):
        of_layer = [event.received for event in told if event.index == index]
        assert of_layer == sorted(of_layer)
        assert of_layer[-1] == len(image.layers[index])


async def test_it_is_summed_up(registry, client, sink, store, kit):
    image = registry.add(kit.image(), "1")
    progress = Progress()
    assert (progress.received, progress.size, progress.at(*Step)) == (0, 0, [])
    pulled = await pull(client, registry.ref(), LINUX, sink, store, progress=progress)
    assert progress.received == progress.size == sum(map(len, image.layers))
    assert [event.index for event in progress.at(Step.DONE)] == [0, 1]
    sink.known.update(pulled.diff_ids)
    progress = Progress()
    await pull(client, registry.ref(), LINUX, sink, store, progress=progress)
    assert (progress.received, progress.size, len(progress.at(Step.PRESENT))) == (0, 0, 2)


async def test_wrong_bytes_are_counted_no_more(registries, sink, store, kit, told):
    mirror, registry = await registries(), await registries()
    image = registry.add(kit.image(), "1")
    mirror.add(image, "1")
    wrong = next(name for name, data in mirror.blobs.items() if data == image.layers[1])
    mirror.blobs[wrong] = bytes(len(image.layers[1]))
    progress = Progress()

    def both(event: LayerEvent) -> None:
        told.append(event)
        progress(event)

    hosts = HostsConfig(mirrors={registry.host: [mirror.url]})

    class Keeping(kit.sink):
        async def has(self, index, diff_ids):
            return index in self.received

        async def receive(self, index, diff_ids, media_type, chunks):
            # One that unpacks as it comes would fail likewise.
            self.received[index] = b"".join([chunk async for chunk in chunks])

    async with Client(hosts, retry=kit.quick) as client:
        await pull(client, registry.ref(), LINUX, Keeping(), store, progress=both, max_parallel=1)
    assert steps(told, 0)[-1] is Step.DONE
    assert [event.received for event in told if event.index == 1 and event.step is Step.FETCHING].count(
        0
    ) == 2
    assert progress.received == sum(map(len, image.layers))
