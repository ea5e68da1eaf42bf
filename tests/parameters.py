"""Write each step's parameters cell from its settings class: `python -m tests.parameters`.

The class is the only place where names, types, defaults and comments are defined; papermill needs
them in a cell.
"""
import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path

import nbformat

from higgs_vi.settings import Settings, comments

STEPS = sorted((Path(__file__).parents[1]/"nbs").glob("0*.ipynb"))


def settings_of(path: Path) -> type[Settings]:
    "Return the settings class that a step's notebook passes to `from_notebook`."
    text = "\n".join(c.source for c in nbformat.read(path, 4).cells)
    module = import_module("higgs_vi." + re.search(r"default_exp (\w+)", text)[1])
    return getattr(module, re.search(r"from_notebook\((\w+), globals", text)[1])


def parameters(cls: type[Settings]) -> str:
    """The text of the parameters cell of `cls`: a line `name: type = default  # comment` per field.

    A comment line right above a field is copied as a heading with a blank line before it.
    """
    source, notes = textwrap.dedent(inspect.getsource(cls)), comments(cls)
    lines, rows = [], source.splitlines()
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        if (above := rows[node.lineno - 2].strip()).startswith("# "):
            lines += [("", ""), (above, "")]
        value = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
        default = ast.get_source_segment(source, value)
        if isinstance(value, ast.Tuple):
            default = "[" + ", ".join(ast.get_source_segment(source, e) for e in value.elts) + "]"
        lines.append((f"{node.target.id}: {node.annotation.id} = {default}", notes[node.target.id]))
    width = max(len(code) for code, note in lines if note)
    text = (f"{code:<{width}}  # {note}" if note else code for code, note in lines)
    return "\n".join(text).lstrip()


def main():
    for path in STEPS:
        notebook = nbformat.read(path, 4)
        cell, = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        if cell.source != (text := parameters(settings_of(path))):
            cell.source = text
            nbformat.write(notebook, path)


if __name__ == "__main__": main()
