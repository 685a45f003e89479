"""Coverage-guided noise (atheris) for what parses the words of strangers. Ends with the first input that breaks a parser.

    python -m tests.fuzz.run reference|digest|challenge|manifest|config|tar [-max_total_time=60] [options of libFuzzer]

Needs `pip install atheris`. Without it `tests/registratur/test_noise.py` and `tests/baustelle/test_tarstream.py` do the same
by hypothesis.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["registratur", "baustelle"]):
    from baustelle.bounds import Bounds, Budget, Window
    from baustelle.decompress import plain_chunks
    from baustelle.errors import UnpackError
    from baustelle.tarstream import TarStream
    from registratur import RegistryError
    from tests.registratur.test_noise import PARSERS

import io


def tar(data: bytes) -> None:
    """A layer's bytes, as far as they are entries."""
    window = Window(Budget(Bounds(max_zstd_window=1 << 20)))
    for _ in TarStream(plain_chunks(io.BytesIO(data), window)):
        pass


def main() -> None:
    """Fuzz one parser."""
    target, *options = sys.argv[1:]
    parse = tar if target == "tar" else PARSERS[target]

    def one(data: bytes) -> None:
        try:
            parse(data)
        except (RegistryError, UnpackError):
            return

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
