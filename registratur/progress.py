"""How far a pull is: what happens to its layers, told when it happens, and summed up."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from registratur.manifest import Descriptor


class Step(StrEnum):
    """What has become of a layer; the values are for people."""

    WAITING = "waiting"
    """It is known. All layers are told to wait before the first one does anything else."""
    PRESENT = "present"
    """It need not be fetched."""
    FETCHING = "fetching"
    """Bytes of it come. With no byte it has just begun, or again: what came before was wrong, and is thrown away."""
    FETCHED = "fetched"
    """All of it came, and is what its digest says; whoever takes it is not done with it."""
    DONE = "done"
    """It was fetched and taken."""


@dataclass(frozen=True, slots=True)
class LayerEvent:
    """A step of one layer: the one with the number `index` of `count`, the lowest first. `received` is in bytes."""

    step: Step
    index: int
    count: int
    layer: Descriptor
    received: int


Listener = Callable[[LayerEvent], None]
"""Is called on the event loop for each piece that comes. It must neither block nor raise; for an asynchronous iterator let it be the
`put_nowait` of an `asyncio.Queue`."""


@dataclass(slots=True, eq=False)
class Progress:
    """A listener that keeps the last event of each layer, and counts."""

    layers: list[LayerEvent] = field(default_factory=list)
    """Lowest first; empty until the image's manifest is here."""
    received: int = 0
    """The bytes that have come of what is kept."""
    size: int = 0
    """The bytes of all layers that are fetched, or may have to be."""

    def __call__(self, event: LayerEvent) -> None:
        """Take an event."""
        if event.index == len(self.layers):  # all wait, one after the other, before anything else
            self.layers.append(event)
            self.size += event.layer.size
            return
        self.received += event.received - self.layers[event.index].received
        self.layers[event.index] = event
        if event.step is Step.PRESENT:
            self.size -= event.layer.size

    def at(self, *steps: Step) -> list[LayerEvent]:
        """Return the layers that are at one of these steps."""
        return [event for event in self.layers if event.step in steps]


class Told(AsyncIterator[bytes]):
    """The pieces of a layer, told as they pass. No generator: nobody has to close it."""

    def __init__(self, chunks: AsyncIterator[bytes], tell: Callable[[Step, int], None]) -> None:
        self._chunks = chunks
        self._tell = tell
        self._ended = False
        self.received = 0

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            if not self._ended:
                self._ended = True
                self._tell(Step.FETCHED, self.received)
            raise
        self.received += len(chunk)
        self._tell(Step.FETCHING, self.received)
        return chunk


class Teller:
    """Tells a listener of the layers of one image."""

    def __init__(self, layers: Sequence[Descriptor], listener: Listener) -> None:
        """All layers wait, which is told at once."""
        self._layers = layers
        self._listener = listener
        self._done: set[int] = set()
        for index in range(len(layers)):
            self(index, Step.WAITING)

    def __call__(self, index: int, step: Step, received: int = 0) -> None:
        """Tell of a layer. One that this very pull has brought stays so, when it is looked at again."""
        if step is Step.PRESENT and index in self._done:
            return
        if step is Step.DONE:
            self._done.add(index)
        self._listener(LayerEvent(step, index, len(self._layers), self._layers[index], received))
