"""Rules of layout and style that can be checked automatically."""
import ast
import configparser
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

from tests.house_table import modules, opens_metadata
from tests.parameters import settings_of
from tests.stored import without_bars

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
STEPS = [p for p in NOTEBOOKS if p.name.startswith("0")]


def cells(path, kind="code"):
    return [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind
    ]


def source(cell): return "".join(cell["source"])


def module_of(path):
    return next(m[1] for c in cells(path) if (m := re.search(r"#\| *default_exp (\w+)", source(c))))


def settings_class(name):
    "The settings class of the step whose module is `name`."
    return settings_of(next(p for p in STEPS if module_of(p) == name))


def test_settings_ini_and_pyproject_say_the_same():
    ini = configparser.ConfigParser()
    ini.read(ROOT / "settings.ini")
    toml = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]
    as_ini = {k: str(v) if not isinstance(v, list) else " ".join(v) for k, v in toml.items()}
    assert as_ini == {k: v for k, v in ini["DEFAULT"].items() if k in as_ini}
    assert {"nbs_path", "lib_path", "tst_flags", "recursive", "allowed_cell_metadata_keys"} <= set(
        as_ini
    )
    assert (
        re.search(r'__version__ = "(.*)"', (ROOT / "higgs_vi/__init__.py").read_text())[1]
        == ini["DEFAULT"]["version"]
    )


def test_parts_import_smaller_parts_and_nothing_imports_upwards():
    "A part imports only parts with smaller numbers; a step imports parts and earlier steps."
    number = {module_of(p): int(p.name[:2]) for p in NOTEBOOKS}
    for path in NOTEBOOKS:
        for node in [
            n
            for c in cells(path)
            if not source(c).lstrip().startswith("%")
            for n in ast.walk(ast.parse(re.sub(r"(?m)^[%!].*$", "", source(c))))
        ]:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("higgs_vi."):
                me, other = int(path.name[:2]), number[node.module.split(".")[1]]
                assert (other < me and other >= 10) if me >= 10 else (other >= 10 or other < me), (
                    f"{path.name} imports {node.module}"
                )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_light_and_carry_no_widgets_players_or_paths(path):
    text = path.read_text(encoding="utf-8")
    shown = json.dumps([c["outputs"] for c in cells(path)])
    assert path.stat().st_size <= 600_000 and not re.search(r"/(home|root|tmp|work|Users)/\w", text)
    assert not re.search("application/vnd.jupyter.widget|<audio|image/png", shown)
    stored = nbformat.reads(text, as_version=4)
    assert without_bars(copy.deepcopy(stored)) == stored, "run: python -m tests.stored"
    nbformat.validate(stored)  # JupyterLab does it first; tests/test_pages.py opens one (slow)
    meta = json.loads(text)["metadata"]["kernelspec"]
    assert meta["name"] == "python3" and meta["language"] == "python"
    first = source(cells(path, "markdown")[0])
    assert first.startswith("# ") and "\n> " in first
    printing = [
        c
        for c in cells(path)
        if re.search(r"^\s*(print|display|show)\(", source(c), re.M)
        and not source(c).startswith("#| export")
    ]
    assert all(c["outputs"] for c in printing), "run the notebook and keep its outputs"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "higgs_vi").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_exported_code_keeps_the_style(path):
    """Functions have at most 40 lines (training loop and kernels 80); public ones have docstrings.

    Lines have at most 100 columns, except the generated `__all__`; ruff checks the rest.
    """
    text = path.read_text(encoding="utf-8")
    lines = re.sub(r"(?s)__all__ = \[.*?\]", "", text).splitlines()
    assert [line for line in lines if len(line) > 100] == []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef):
            kernel = any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
            long = node.name == "train" or kernel
            assert node.end_lineno - node.lineno < (80 if long else 40), node.name


def test_metadata_json_is_opened_in_one_place():
    rooms = [name for name, (_, tree) in modules(ROOT).items() if opens_metadata(tree)]
    assert rooms == ["manifest"], "read_manifest and write_manifest are its only reader and writer"


def test_every_step_is_a_command():
    "Each step has a command higgs-vi-<module> that answers --help with every parameter."
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {f"higgs-vi-{m}": f"higgs_vi.{m}:main" for m in map(module_of, STEPS)}
    for name, target in scripts.items():
        module = import_module(target.split(":")[0])
        with pytest.raises(SystemExit) as end:
            module.main(["--help"])
        assert end.value.code == 0 and shutil.which(name), (
            f"{name} is not installed: pip install -e ."
        )


def in_one_process(code, *args):
    """Run `code` in a fresh process and return the lines it prints.

    In `code`, `go(step, as_module, *argv)` runs a step and returns how it ended.
    """
    head = """
import contextlib, io, runpy, shutil, sys
def go(step, as_module, *argv):
    sys.argv[:] = [shutil.which(f"higgs-vi-{step}"), *argv]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if as_module: runpy.run_module(f"higgs_vi.{step}", run_name="__main__", alter_sys=True)
            else: runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end: return end.code, said.getvalue()
    return None, said.getvalue()
"""
    out = subprocess.run(
        [sys.executable, "-c", head + code, *args], capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0, out.stderr
    return out.stdout.splitlines()


def test_every_step_runs_as_a_module(tmp_path):
    "`python -m higgs_vi.<step>` reaches the step's own work, which here refuses a missing folder."
    wrong = dict(
        data="table",
        tags="data",
        speakers="data",
        memory="model",
        train="output_dir",
        merge="adapter",
        listen="run",
        say="adapter",
        check="data",
        judge="run",
    )
    code = """
steps, nowhere = sys.argv[1].split(","), sys.argv[2]
for step, option in (s.split(":") for s in steps):
    more = ["--resume_from_checkpoint", "true"] if step == "train" else []
    print(step, go(step, True, f"--{option}", nowhere, *more)[0])
"""
    steps = [module_of(p) for p in STEPS]
    lines = in_one_process(code, ",".join(f"{s}:{wrong[s]}" for s in steps), f"{tmp_path}/nowhere")
    assert len(steps) == len(lines) == 10
    for step, line in zip(steps, lines, strict=True):
        assert line.startswith(f"{step} higgs-vi-{step}: ") and "nowhere" in line


@pytest.mark.parametrize("step", [module_of(p) for p in STEPS])
def test_help_and_wrong_options_come_before_torch_is_imported(step):
    "Both as a module and as a script, because torch and transformers take seconds to import."
    number = next((f.name for f in fields(settings_class(step)) if f.type in (int, float)), None)
    cases = [["--help"], ["--no_such_parameter=1"], *[[f"--{number}=nan"]] * bool(number)]
    code = """
step = sys.argv[1]
for argv in sys.argv[2:]:
    for as_module in (True, False):
        code, said = go(step, as_module, argv)
        loaded = [m for m in ("torch", "transformers", "matplotlib") if m in sys.modules]
        print(code, *loaded, said.count("usage:"), said.strip().splitlines()[-1])
"""
    lines = in_one_process(code, step, *[c[0] for c in cases])
    help_, unknown, nan = lines[:2], lines[2:4], lines[4:]
    assert all(line.startswith("0 1 ") for line in help_)
    assert all(
        line.startswith("2 1 ") and "there is no option --no_such_parameter" in line
        for line in unknown
    )
    assert all(
        line.startswith("2 1 ") and f"the parameter {number} is 'nan': it takes" in line
        for line in nan
    ) and len(nan) == 2 * bool(number)


def test_the_library_does_not_need_nbdev():
    for path in (ROOT / "higgs_vi").glob("[a-z]*.py"):
        assert not re.search(r"^\s*(import|from) (nbdev|execnb)", path.read_text(), re.M)


def test_the_wheel_works_in_an_empty_folder(tmp_path):
    "A wheel contains nano and demo clips: commands prepare data and speak without the checkout."
    for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "higgs_vi", tmp_path / "higgs_vi")
    build = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheel", "."]
    subprocess.run([sys.executable, "-m", *build], cwd=tmp_path, check=True, capture_output=True)
    shutil.unpack_archive(next((tmp_path / "wheel").glob("*.whl")), tmp_path / "site", "zip")
    (empty := tmp_path / "empty").mkdir()
    env = os.environ | dict(PYTHONPATH=str(tmp_path / "site"), CUDA_VISIBLE_DEVICES="")
    for step, *options in (
        ("data", "--output_dir", "mine"),
        ("say", "--text", "Xin chào.", "--output_file", "hello.wav"),
    ):
        command = [sys.executable, "-m", f"higgs_vi.{step}", *options]
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (empty / "mine/metadata.json").exists() and (empty / "hello.wav").stat().st_size > 10_000
