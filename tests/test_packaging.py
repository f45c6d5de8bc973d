"""The wheel as a user gets it, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "skdeploy").rglob("*.py")
)
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "onnxsim", "tensorrt", "tensorrt_rtx", "openvino"}


def python(code: str, *, folder: Path) -> str:
    """Runs ``code`` in an isolated interpreter in ``folder``; PYTHON* variables and the folder are not looked at (-I)."""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed outside of the checkout."""
    target = tmp_path_factory.mktemp("installed")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = subprocess.run([sys.executable, "-m", *install], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def from_wheel(code: str, installed: Path, folder: Path) -> str:
    """Runs ``code`` with the installed wheel before everything else on the path, editable checkout included."""
    return python(f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}", folder=folder)


def test_the_only_top_level_import_is_skdeploy(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {"skdeploy", f"skdeploy-{PROJECT['version']}.dist-info"}


def test_the_wheel_holds_every_module_card_and_calibration_image(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in [
        ("skdeploy", "skdeploy"),
        ("models", "skdeploy/models"),
        ("calibration", "skdeploy/calibration"),
    ]:
        files = {
            f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files
        assert files <= names


def test_an_installed_wheel_finds_its_cards_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = """
import json, skdeploy
from skdeploy.zoo.cards import list_cards
print(json.dumps([skdeploy.__file__, {spec.name: str(path) for spec, path in list_cards()}]))
"""
    module, cards = json.loads(from_wheel(code, installed, tmp_path))
    assert Path(module).is_relative_to(installed)
    assert set(cards) == {
        path.relative_to(ROOT / "models").with_suffix("").as_posix() for path in (ROOT / "models").rglob("*.toml")
    }
    assert all(Path(card).is_relative_to(installed) for card in cards.values())


RUN = """
import runpy
sys.argv = ["skdeploy", *{arguments!r}]
try:
    runpy.run_module("skdeploy", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print(sorted({heavy!r} & {{name.split(".")[0] for name in sys.modules}}))
"""


def test_skdeploy_models_works_from_an_installed_wheel_in_another_folder(installed: Path, tmp_path: Path) -> None:
    listed = from_wheel(RUN.format(arguments=["models"], heavy=set()), installed, tmp_path)
    for path in (ROOT / "models").glob("*.toml"):
        assert path.stem in listed


def test_help_imports_no_framework(installed: Path, tmp_path: Path) -> None:
    assert from_wheel(RUN.format(arguments=["--help"], heavy=HEAVY), installed, tmp_path).endswith("[]\n")


def test_importing_the_package_imports_no_framework(installed: Path, tmp_path: Path) -> None:
    code = f"import skdeploy; print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    assert from_wheel(code, installed, tmp_path) == "[]\n"


def test_the_framework_check_sees_a_module_that_imports_torch(installed: Path, tmp_path: Path) -> None:
    code = f"import skdeploy.zoo.sknet; print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    assert "torch" in from_wheel(code, installed, tmp_path)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_imports_without_optional_packages(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for optional in ("tensorrt", "tensorrt_rtx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, optional, None)  # makes any import of it an ImportError
    cached = sys.modules.pop(module, None)
    try:
        importlib.import_module(module)
    finally:
        if cached is not None:
            sys.modules[module] = cached
            parent, _, name = module.rpartition(".")
            if parent:  # it names the module that was imported last, and tests that change one would change the other
                setattr(sys.modules[parent], name, cached)


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imported(folder: str) -> set[str]:
    """The top-level names that the modules of a folder import anywhere, own and standard ones left out."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"skdeploy"}


# These come from an extra, or are an alternative to it that is not on every machine: their import is found by `require`.
OPTIONAL_IMPORTS = {"onnxruntime", "tensorrt", "tensorrt_rtx", "openvino"}
PARTS = {"pydantic_core": "pydantic"}  # pydantic pins it to one version, and its documentation imports from it

# torch.onnx's exporter imports onnxscript, and says so only when it is run; of scikit-image only the photographs are used.
NOT_IMPORTED = {"onnxscript", "scikit-image"}


def test_every_package_that_the_code_imports_is_declared_and_the_other_way_round() -> None:
    declared = {distribution(requirement) for requirement in (*PROJECT["dependencies"], *EXTRAS["export"])}
    providers = packages_distributions()
    used = set()
    for name in imported("skdeploy") - OPTIONAL_IMPORTS:
        candidates = {provider.lower().replace("_", "-") for provider in providers.get(PARTS.get(name, name), [])}
        assert candidates & declared, f"skdeploy imports {name}, which no dependency in pyproject.toml provides"
        used |= candidates & declared
    assert used | NOT_IMPORTED == declared


@pytest.mark.parametrize(
    "requirement",
    sorted(
        {
            distribution(requirement)
            for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
            for requirement in group
        }
        - {"skdeploy"}
    ),
)
def test_contributing_gives_the_reason_for_each_dependency(requirement: str) -> None:
    assert f"| `{requirement}` |" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_what_only_an_export_takes_is_in_its_extra_alone() -> None:
    """What `tests/cli/test_without_torch.py` runs without is not installed with what it runs."""
    export, base = ({distribution(name) for name in group} for group in (EXTRAS["export"], PROJECT["dependencies"]))
    assert export == {"torch", "onnxscript", "onnxsim", "safetensors", "scikit-image", "tomli-w"}
    assert not export & base
    assert any("export" in requirement for requirement in EXTRAS["test"] if distribution(requirement) == "skdeploy")


def closure(name: str, found: set[str]) -> set[str]:
    """A distribution and what it requires here, as pip would install it."""
    if name not in found:
        found.add(name)
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                closure(canonicalize_name(requirement.name), found)
    return found


def test_no_dependency_of_the_runtime_brings_torch_along() -> None:
    installed: set[str] = set()
    for requirement in (*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["plans"], *EXTRAS["report"]):
        closure(distribution(requirement), installed)
    assert {"numpy", "onnxruntime", "cuda-pathfinder"} <= installed
    assert not {"torch", "triton", "onnxscript", "onnxsim", "scipy", "scikit-image"} & installed
    assert "scipy" in closure("scikit-image", set())  # it would be seen


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        name.lower().replace("_", "-"): version
        for name, version in (line.split("==") for line in lines if line and not line.startswith("#"))
    }


def test_constraints_pin_every_dependency_that_make_installs() -> None:
    wanted = {
        distribution(requirement)
        for group in (PROJECT["dependencies"], *(EXTRAS[name] for name in ("rtx", "export", "plans", "test", "dev")))
        for requirement in group
    } - {"skdeploy"}
    assert wanted <= set(pins())
    assert "onnxruntime" in pins()


def test_constraints_pin_one_onnxruntime_and_no_local_build() -> None:
    # onnxruntime and onnxruntime-gpu install the same files: whichever comes last overwrites the other
    assert "onnxruntime-gpu" not in pins()
    assert not [version for version in pins().values() if "+" in version or "@" in version]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_the_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
