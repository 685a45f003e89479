"""What containers and pods use: sampled at a steady pace for all of them, answered from memory.

`sampling` asks the host, a few at a time, and keeps the last answer about each; `layers` has looked through the writable
layers; `encoding` makes the CRI's messages, once of each sample; `stats` is what services ask.
"""

from cri.stats.layers import Layer
from cri.stats.samples import Sample
from cri.stats.stats import ContainerFigures, FilesystemRoom, PodFigures, Stats

__all__ = ["ContainerFigures", "FilesystemRoom", "Layer", "PodFigures", "Sample", "Stats"]
