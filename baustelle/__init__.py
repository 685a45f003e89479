"""Layers to root filesystems, image configs to runtime defaults, Containerfiles to images.

Import the submodule you need. This package imports nothing by itself, because `baustelle.paths` is
used by processes that start in a millisecond and may import only the standard library.
"""
