"""What help imports: little more than Typer for `skdeploy -h`, and no arrays for that of a verb that runs no artifact.

Verbs that run artifacts ask the backends for their options. Modules are counted; nothing is timed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "onnx", "onnx_ir", "torch", "onnxruntime", "PIL", "matplotlib", "jinja2")
OWN_AND_FEW = 30  # beside Typer's 135: our own light modules, and what Typer imports to print help
COUNT = """
import sys
{first}
print(*sys.modules)
"""
HELP = """
import atexit
sys.argv = ["skdeploy", {arguments}]
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from skdeploy.__main__ import main
main()
"""


def modules(*arguments: str) -> set[str]:
    """Those that a help has imported when it ends."""
    code = COUNT.format(first=HELP.format(arguments=", ".join(map(repr, arguments))))
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split())


def typers() -> set[str]:
    code = COUNT.format(first="import typer")
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_list_of_verbs_imports_little_more_than_typer() -> None:
    more = modules("-h") - typers()
    assert len(more) <= OWN_AND_FEW, sorted(more)
    assert not {name for name in more if name.startswith(("pydantic", "rich"))}


@pytest.mark.parametrize("verb", ["export", "calibrate", "build", "inspect"])
def test_the_help_of_a_verb_imports_no_arrays_and_no_framework(verb: str) -> None:
    assert not modules(verb, "-h") & set(HEAVY)


def test_a_heavy_import_is_seen() -> None:
    assert modules("doctor") & set(HEAVY)
