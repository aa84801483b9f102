"""The house rules that a machine can keep: arrows point down, none in circles, names are listed, the wheel is whole."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
import venv
import zipfile
from graphlib import CycleError, TopologicalSorter
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


MODULE_OF = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
"""The file of each module, by its dotted name below ``headway``."""


def module_of(name: str) -> str:
    """The module that an imported name comes from, "" if it is none of these."""
    while name and name not in MODULE_OF:
        name = name.rpartition(".")[0]
    return name


def test_no_circles() -> None:
    """Imports that only type checkers follow count: who needs another's types cannot be read without it."""
    graph = {name: {module_of(other) for other in imported(path)} - {"", name} for name, path in MODULE_OF.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def folder_of(path: Path) -> tuple[str, ...]:
    """The folder within ``envs`` or ``wrappers`` that a file belongs to, with the layer; () if to none."""
    return path.parts[:2] if path.parts[0] in ("envs", "wrappers") and len(path.parts) > 2 else ()


def test_folders_take_nothing_from_their_sisters() -> None:
    """What two simulators need lies beside them."""
    taken = []
    for path in filter(folder_of, MODULES):
        for name in imported(path):
            other = folder_of(MODULE_OF[module_of(name)])
            if other[:1] == path.parts[:1] and other != folder_of(path):
                taken.append(f"{path} imports {name}")
    assert taken == []


def agent_of(module: str) -> str | None:
    """The agent, a file or a folder beside ``agents/core``, that a module belongs to."""
    layer, _, rest = module.partition(".")
    agent = rest.partition(".")[0]
    return agent if layer == "agents" and agent not in ("", "core", "presets") else None


TRAINERS = {"mean_field"}
"""Folders of solvers, which train agents as a user does."""


@pytest.mark.parametrize("name", [name for name in MODULE_OF if agent_of(name)])
def test_agents_take_from_each_other_only_functions(name: str) -> None:
    """Losses, that is: an agent is no kind of another one."""
    module = importlib.import_module(f"headway.{name}")
    for taken in imported(MODULE_OF[name]):
        owner = module_of(taken)
        if agent_of(owner) not in (None, agent_of(name), *TRAINERS) and agent_of(name) not in TRAINERS:
            thing = getattr(importlib.import_module(f"headway.{owner}"), taken.rpartition(".")[2], None)
            assert inspect.isfunction(thing), taken
    for defined in vars(module).values():
        if inspect.isclass(defined) and defined.__module__ == module.__name__:
            bases = {agent_of(base.__module__.removeprefix("headway.")) for base in defined.__mro__}
            assert bases <= {None, agent_of(name)}, defined


def test_private_names_stay_at_home() -> None:
    taken = {path: [name for name in imported(path) if name.rpartition(".")[2].startswith("_")] for path in MODULES}
    assert {path: names for path, names in taken.items() if names} == {}


def test_the_scan_finds_imports() -> None:
    assert "wrappers.batching.as_batched" in imported(Path("agents/core/environment.py"))
    assert "agents.core.off_policy.OffPolicyAgent" in imported(Path("agents/td3.py"))


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
