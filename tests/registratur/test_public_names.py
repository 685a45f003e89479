import ast
from pathlib import Path

import registratur


def test_all_is_sorted_and_complete():
    public = {name for name in vars(registratur) if not name.startswith("_") and name[0].isupper()}
    assert public <= set(registratur.__all__)
    assert registratur.__all__ == sorted(registratur.__all__)


def test_knows_nothing_of_the_endpoint():
    ours = {"cri", "baustelle", "cni_plugins"}
    for path in Path(registratur.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in ours, path
            elif isinstance(node, ast.Import):
                assert not ours & {alias.name.partition(".")[0] for alias in node.names}, path
