"""The state of the house in figures, before and after: `python -m tests.house_table [REVISION …]`.

Prints a Markdown table with one column for each git revision and one for the working tree.
"""
import ast
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
LONG = 100


def modules(root: Path) -> dict[str, tuple[str, ast.Module]]:
    "Source and syntax tree of each module of the package, by name."
    paths = (p for p in sorted((root / "higgs_vi").glob("*.py")) if p.name != "_modidx.py")
    return {p.stem: (t := p.read_text(encoding="utf-8"), ast.parse(t)) for p in paths}


def cells(root: Path, folder: str) -> list[dict]:
    "All code cells of the notebooks in a folder."
    paths = sorted((root / folder).glob("*.ipynb"))
    found = [c for p in paths for c in json.loads(p.read_text(encoding="utf-8"))["cells"]]
    return [c for c in found if c["cell_type"] == "code"]


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def long_lines(texts: list[str]) -> int:
    "Lines over 100 columns, without the generated `__all__`."
    texts = [re.sub(r"(?s)__all__ = \[.*?\]", "", t) for t in texts]
    return sum(len(line) > LONG for t in texts for line in t.splitlines())


def ruff(root: Path, rules: str) -> int:
    "Findings of ruff in the exported modules and the tests."
    command = ["ruff", "check", "--isolated", "--select", rules, "--output-format", "json", "-e"]
    command += ["--exclude", "_modidx.py", "higgs_vi", "tests"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return len(json.loads(result.stdout))


def steps_and_parts(root: Path) -> tuple[set[str], set[str]]:
    names = {p.stem[:1]: set() for p in (root / "nbs").glob("*.ipynb")}
    for p in (root / "nbs").glob("*.ipynb"): names[p.stem[:1]].add(p.stem.split("_", 1)[1])
    return names.pop("0"), set().union(*names.values())


def imports(tree: ast.Module) -> set[str]:
    "Modules of the package that a module imports, also within functions."
    found = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.level == 1:
            found |= {n.module} if n.module else {a.name for a in n.names}
    return found


def circles(graph: dict[str, set[str]]) -> int:
    "Modules that import themselves by way of others."
    def reached(start):
        seen, todo = set(), list(graph[start])
        while todo:
            if (m := todo.pop()) not in seen:
                seen.add(m)
                todo += graph.get(m, ())
        return seen
    return sum(m in reached(m) for m in graph)


def opens_metadata(tree: ast.Module) -> bool:
    "Whether a module names metadata.json as a file: in a message it stands among other words."
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    texts = (text for text in texts if isinstance(text, str))
    return any(re.search(r"(^|/)(metadata|unbalanced)\.json$", text) for text in texts)


def shown(code: list[dict]) -> tuple[int, int]:
    "Cells that neither export, assert, import only nor set parameters: with an output, and all."
    def counts(c):
        t = text_of(c)
        tree = ast.parse(re.sub(r"(?m)^[%!].*$", "pass", t))
        only = all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body)
        return not ("#| " in t or "assert" in t or c["metadata"].get("tags") or only)
    shows = [c for c in code if counts(c)]
    return sum(bool(c["outputs"]) for c in shows), len(shows)


def importers(root: Path, step: str) -> int:
    "Notebooks that import the module of a step, be it in a test."
    paths = sorted((root / "nbs").glob("*.ipynb"))
    return sum(f"from higgs_vi.{step} import" in p.read_text(encoding="utf-8") for p in paths)


def help_seconds(root: Path, step: str) -> float:
    "Seconds of `python -m higgs_vi.<step> --help`, the median of three."
    def once():
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"higgs_vi.{step}", "--help"], cwd=root,
                       env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
        return time.perf_counter() - began
    return median(once() for _ in range(3))


def measure(root: Path) -> dict[str, object]:
    "One column of the table."
    package, (steps, parts) = modules(root), steps_and_parts(root)
    graph = {m: imports(tree) for m, (_, tree) in package.items()}
    notebooks, words = cells(root, "nbs"), len((root / "README.md").read_text().split())
    with_output, shows = shown(notebooks)
    tests = [p.read_text(encoding="utf-8") for p in sorted((root / "tests").glob("*.py"))]
    tests += map(text_of, cells(root, "exps"))
    return {
        "lines of the library": sum(t.count("\n") for t, _ in package.values()),
        f"lines over {LONG} columns: library": long_lines([t for t, _ in package.values()]),
        f"lines over {LONG} columns: tests and exps": long_lines(tests),
        "statements joined by a semicolon": ruff(root, "E702,E703"),
        "unused imports": ruff(root, "F401"),
        "modules that open metadata.json": sum(opens_metadata(t) for _, t in package.values()),
        "parts that import a step": sum(bool(graph[m] & steps) for m in parts & graph.keys()),
        "notebooks that import the trainer": importers(root, "train"),
        "modules in an import circle": circles(graph),
        "code cells that show something: with an output": f"{with_output} of {shows}",
        "words of README.md": words,
        "seconds of train --help": round(help_seconds(root, "train"), 1),
        "seconds of data --help": round(help_seconds(root, "data"), 1),
        "seconds of check --help": round(help_seconds(root, "check"), 1),
    }


def main(revisions: list[str]):
    columns = {}
    for revision in revisions:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
            )
            subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
            columns[revision] = measure(Path(folder))
    columns["now"] = measure(ROOT)
    print("| |", " | ".join(columns), "|")
    print("|---|", "---|" * len(columns), sep="")
    for name in columns["now"]:
        print(f"| {name} |", " | ".join(str(c[name]) for c in columns.values()), "|")


if __name__ == "__main__": main(sys.argv[1:])
