"""Remove progress bars and widget state from the outputs that notebooks store.

python -m tests.stored
"""
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
BARS = re.compile(r"(?:\r?[^\r\n]*\|\s*\d+/\d+ \[[^\r\n]*)+\n?")  # tqdm: |██ | 3/8 [00:01


def joined(outputs: list) -> list:
    "Return `outputs` with consecutive pieces of one stream joined."
    found = []
    for output in outputs:
        last = found[-1] if found else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else: found.append(output)
    return found


def without_bars(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Remove progress bars from the streams of `nb`, and its widget state, in place."
    nb.metadata.pop("widgets", None)
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "stream": output.text = BARS.sub("", output.text)
        cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text]
    return nb


if __name__ == "__main__":
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(without_bars(nbformat.reads(before, 4))) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"cleaned {path.name}")
