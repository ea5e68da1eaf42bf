"""The rules of the house that can be checked."""
import ast, configparser, json, re, shutil, subprocess, sys, tomllib
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
STEPS = [p for p in NOTEBOOKS if p.name.startswith("0")]


def cells(path, kind="code"): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell): return "".join(cell["source"])


def module_of(path): return next(m[1] for c in cells(path) if (m := re.search(r"#\| *default_exp (\w+)", source(c))))


def test_settings_ini_and_pyproject_say_the_same():
    ini = configparser.ConfigParser(); ini.read(ROOT/"settings.ini")
    toml = tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]["nbdev"]
    as_ini = {k: str(v) if not isinstance(v, list) else " ".join(v) for k, v in toml.items()}
    assert as_ini == {k: v for k, v in ini["DEFAULT"].items() if k in as_ini}
    assert {"nbs_path", "lib_path", "tst_flags", "recursive", "allowed_cell_metadata_keys"} <= set(as_ini)
    assert re.search(r'"(.*)"', (ROOT/"higgs_vi/__init__.py").read_text())[1] == ini["DEFAULT"]["version"]


def test_parts_import_smaller_parts_and_nothing_imports_upwards():
    "A part (1N) imports parts of smaller number; a step (0N) imports parts and earlier steps."
    number = {module_of(p): int(p.name[:2]) for p in NOTEBOOKS}
    for path in NOTEBOOKS:
        for node in [n for c in cells(path) if not source(c).lstrip().startswith("%")
                     for n in ast.walk(ast.parse(re.sub(r"(?m)^[%!].*$", "", source(c))))]:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("higgs_vi."):
                me, other = int(path.name[:2]), number[node.module.split(".")[1]]
                assert (other < me and other >= 10) if me >= 10 else (other >= 10 or other < me), f"{path.name} imports {node.module}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_light_and_carry_no_widgets_players_or_paths(path):
    text = path.read_text(encoding="utf-8")
    shown = json.dumps([c["outputs"] for c in cells(path)])
    assert path.stat().st_size <= 600_000 and not re.search(r"/(home|root|tmp|work|Users)/\w", text)
    assert not re.search("widget-state|application/vnd.jupyter.widget|<audio|image/png", shown)
    nbformat.validate(nbformat.reads(text, as_version=4))      # what JupyterLab does first; tests/test_pages.py opens one in it (slow)
    meta = json.loads(text)["metadata"]["kernelspec"]
    assert meta["name"] == "python3" and meta["language"] == "python"
    first = source(cells(path, "markdown")[0])
    assert first.startswith("# ") and "\n> " in first
    printing = [c for c in cells(path) if re.search(r"^\s*(print|display|show)\(", source(c), re.M) and not source(c).startswith("#| export")]
    assert all(c["outputs"] for c in printing), "run the notebook and keep its outputs"


@pytest.mark.parametrize("path", STEPS, ids=lambda p: p.stem)
def test_parameters_are_the_settings(path):
    "The cell that papermill fills, and the dataclass that checks it, name the same parameters with the same defaults."
    own = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(own) == 1
    given = {n.target.id: (n.annotation.id, ast.literal_eval(n.value)) for n in ast.parse(source(own[0])).body}
    module = import_module(f"higgs_vi.{module_of(path)}")
    cls = next(v for v in vars(module).values()
               if isinstance(v, type) and v.__module__ == module.__name__ and v.__name__.endswith("Settings"))
    assert {f.name: (f.type.__name__, getattr(cls(), f.name)) for f in fields(cls)} == given
    assert all("#" in line for line in source(own[0]).splitlines())


@pytest.mark.parametrize("path", sorted((ROOT/"higgs_vi").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_exported_code_keeps_the_style(path):
    "Functions of at most 40 lines (the training loop 80), lines of at most 140 columns, a docstring on everything public."
    text = path.read_text(encoding="utf-8")
    assert [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 140] == []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef): assert node.end_lineno - node.lineno < (80 if node.name == "train" else 40), node.name


def test_every_step_is_a_command():
    "higgs-vi-<module> for each step; each answers --help with every parameter."
    scripts = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {f"higgs-vi-{m}": f"higgs_vi.{m}:main" for m in map(module_of, STEPS)}
    for name, target in scripts.items():
        module = import_module(target.split(":")[0])
        with pytest.raises(SystemExit) as end: module.main(["--help"])
        assert end.value.code == 0 and shutil.which(name), f"{name} is not installed: pip install -e ."


def test_every_step_runs_as_a_module():
    "`python -m higgs_vi.<step>` does what the command does; here all nine in one other process that imports torch once."
    code = """
import runpy, sys
for step in sys.argv[1].split(","):
    sys.argv[1:] = ["--no_such_parameter", "1"]
    try: runpy.run_module(f"higgs_vi.{step}", run_name="__main__", alter_sys=True)
    except SystemExit as end: print(step, end.code)
"""
    steps = [module_of(p) for p in STEPS]
    out = subprocess.run([sys.executable, "-c", code, ",".join(steps)], capture_output=True, text=True, cwd=ROOT)
    assert len(steps) == 9 and out.stdout.split("\n")[:-1] == [f"{step} 2" for step in steps], out.stderr
    assert out.stderr.count("unrecognized arguments: --no_such_parameter 1") == 9


@pytest.mark.parametrize("step", ["data", "tags", "speakers", "check", "listen"])
def test_help_comes_at_once_where_no_model_is_needed(step):
    "The data tools import neither torch nor transformers before they need them."
    code = f"import sys, higgs_vi.{step}; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"
    out = subprocess.run([sys.executable, "-m", f"higgs_vi.{step}", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0 and out.stdout.startswith("usage:")


def test_the_library_does_not_need_nbdev():
    for path in (ROOT/"higgs_vi").glob("[a-z]*.py"): assert not re.search(r"^\s*(import|from) (nbdev|execnb)", path.read_text(), re.M)
