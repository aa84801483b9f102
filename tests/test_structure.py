"""The house rules that a machine can keep: arrows point down, names are listed, the wheel is whole."""

import ast
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["envs", "wrappers", "agents", "scripts"]
"""From the bottom up: a folder imports from itself and from those before it."""

MODULES = sorted(path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The dotted names, below ``headway``, that a module imports from Headway."""
    package = path.parent.parts
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            prefix = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {f"{prefix}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headway"):
            found |= {f"{(node.module or '').removeprefix('headway').strip('.')}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("headway.") for alias in node.names if alias.name.startswith("headway")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_arrows_point_down(path: Path) -> None:
    allowed = LAYERS[: LAYERS.index(path.parts[0]) + 1]
    for name in imported(path):
        assert name.split(".")[0] in allowed, f"{path} imports {name}"
        if path.parts[:2] == ("agents", "core"):
            below = name.split(".")[0] != "agents" or name.split(".")[1] == "core"
            assert below, f"{path} is the base of agents and imports {name}"


def test_the_scan_finds_imports() -> None:
    assert "wrappers.batching.as_batched" in imported(Path("agents/core/agent.py"))
    assert "agents.core.off_policy.OffPolicyAgent" in imported(Path("agents/sac.py"))


def test_packages_are_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {"headway." + ".".join(path.parent.parts) for path in MODULES}
    for package in listed:
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert (folder / "__init__.py").exists()


def test_exports_exist() -> None:
    for package in ("envs", "wrappers", "agents"):
        module = __import__(f"headway.{package}", fromlist=["*"])
        assert sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)) == list(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_wheel_holds_every_module_and_imports(tmp_path: Path) -> None:
    """Build the wheel, install it in a fresh environment beside this one's dependencies, import every module of it."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"headway/{path.as_posix()}" for path in MODULES} <= set(names)
    assert {f"headway/{layer}/py.typed" for layer in LAYERS} <= set(names)
    assert {"headway/agents/presets/sac.yaml", "headway/agents/presets/td3.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "agents", "envs", "headway/tests"))]

    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    (site,) = (home / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    modules = [".".join(["headway", *path.with_suffix("").parts]).removesuffix(".__init__") for path in MODULES]
    program = f"""
import importlib, pathlib, sys
sys.path.append({here!r})  # the dependencies; Headway itself must come from the wheel
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
for name in {modules!r}:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to({str(site)!r}), module.__file__
"""
    subprocess.run([python, "-I", "-c", program], check=True, cwd=tmp_path, timeout=200)  # whatever PYTHONPATH says
