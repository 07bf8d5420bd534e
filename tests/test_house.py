"""The habits of the house that a machine can check; CONTRIBUTING.md lists them."""

import ast
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("clipdg_jax", "configs", "launch", "tools", "tests", ".ci")
MAX_LINES = 450

# A room may import from rooms with a lower number, and from itself.
RANKS = {
    "main": 6,
    "jobs": 5,
    "domains": 4,
    "finetuning": 4,
    "interop": 4,
    "evaluation": 3,
    "training": 2,
    "models": 1,
    "data": 1,
    "malloc": 0,
    "errors": 0,
}

# Reference implementations: fixtures and benchmarks use them, the package never does.
REFERENCES = {
    *("torch", "torchvision", "open_clip", "open_clip_train", "timm", "transformers", "faiss")
}


def python_files(*folders: str) -> list[pathlib.Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def text_files() -> list[pathlib.Path]:
    suffixes = {".py", ".sh", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cff", ""}
    inside = (p for folder in FOLDERS for p in (ROOT / folder).rglob("*"))
    files = [p for p in (*ROOT.iterdir(), *inside) if p.is_file() and p.suffix in suffixes]
    return sorted(p for p in files if p.name != ".git")


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def package_modules() -> dict[str, pathlib.Path]:
    return {module_name(p): p for p in python_files("clipdg_jax")}


@functools.cache
def imported(path: pathlib.Path) -> frozenset[str]:
    """Full names of what a file imports, inside functions too.

    `from a import b` counts as `a.b` where that is a module of the package, else as `a`.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in package_modules() else str(node.module))
    return frozenset(names)


def test_files_are_small():
    lengths = {relative(p): len(p.read_text().splitlines()) for p in python_files(*FOLDERS)}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_imports_point_one_way():
    wrong = []
    for name, path in package_modules().items():
        if name == "clipdg_jax":
            continue
        own = name.split(".")[1]
        for target in imported(path):
            if target.startswith("clipdg_jax."):
                room = target.split(".")[1]
                if room != own and RANKS[room] >= RANKS[own]:
                    wrong.append(f"{name} imports {target}")
            elif target.split(".")[0] in ("clipdg_jax", "configs", "tools", "tests"):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_no_import_circles():
    edges = {name: imported(p) & package_modules().keys() for name, p in package_modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def as_set(lines: list[str]) -> set[tuple[str, str]]:
    parsed = [Requirement(line) for line in lines]
    return {(r.name, str(r.specifier)) for r in parsed}


def test_requirements_are_those_of_pyproject_for_cuda_12_each_with_a_reason():
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert [line for line in lines if not re.search(r" # \w", line)] == []
    required = [line.partition("#")[0] for line in lines]
    assert as_set(required) == as_set(project()["dependencies"])
    assert {r.name: r.extras for r in map(Requirement, required) if r.extras} == {"jax": {"cuda12"}}
    extras = project()["optional-dependencies"]
    assert {name: extras[name] for name in ("cuda12", "cuda13", "tpu")} == {
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    }


def third_party(*folders: str) -> set[str]:
    """Top-level names of what these folders import from outside."""
    own = {"clipdg_jax", "configs", "tools", "tests"}
    names = {name.split(".")[0] for p in python_files(*folders) for name in imported(p)}
    return names - own - sys.stdlib_module_names


@functools.cache
def providers() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    found = providers().get(module, [])
    return {name.lower().replace("_", "-") for name in found}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    declared = {Requirement(d).name.lower().replace("_", "-") for d in project()["dependencies"]}
    package = third_party("clipdg_jax", "configs")
    tools = third_party("tools") - REFERENCES
    undeclared = {m for m in package | tools if not distributions(m) & declared}
    assert undeclared == set()
    used = set().union(*(distributions(m) for m in package | tools))
    assert declared - used == set()


def config_files() -> list[pathlib.Path]:
    return [p for p in python_files("configs") if p.name != "__init__.py"]


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", config_files(), ids=relative)
def test_config_loads_and_says_how_it_is_run(path):
    module = load(path)
    assert f"python -m clipdg_jax.main --config={relative(path)}" in module.__doc__
    arguments = [None, *getattr(module, "PRESETS", ())]
    for argument in arguments:
        config = module.get_config(argument) if argument else module.get_config()
        assert (ROOT / "clipdg_jax" / "jobs" / f"{config.job}.py").is_file()
        assert config.dry_run is False


def test_no_paths_of_a_machine():
    pattern = re.compile(r"(?<![\w.}$/-])/(?:work|farm|root|home|Users)/[\w.]")
    found = [
        f"{relative(p)}:{number}: {line.strip()}"
        for p in text_files()
        for number, line in enumerate(p.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def scripts() -> list[pathlib.Path]:
    inside = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()]
    return sorted(p for p in inside if p.suffix == ".sh" or p == ROOT / ".ci" / "run")


@pytest.mark.parametrize("path", scripts(), ids=relative)
def test_scripts_are_executable_and_parse(path):
    assert os.access(path, os.X_OK)
    shell = path.read_text().splitlines()[0].removeprefix("#!").split()[-1].rpartition("/")[2]
    checks = [[shell, "-n", path]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck", path])
    for command in checks:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
