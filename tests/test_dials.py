"""The dials of 07_say: only in a live notebook, and with the same result as a headless run."""
import json
import re
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from higgs_vi.dials import dials, is_live
from higgs_vi.say import SaySettings
from tests.test_house import cells, source

SAY = Path(__file__).parents[1] / "nbs/07_say.ipynb"


@pytest.fixture
def said():
    "The settings with which the action was called."
    return []


def box(said, **spans):
    made = dials(SaySettings(text="Chào."), spans, said.append, "Say")
    *widgets, button, output = made.children
    return dict(zip(spans, widgets, strict=True)), button


def test_a_click_calls_the_action_with_the_values_of_the_dials(said):
    widgets, button = box(said, text=None, temperature=(0, 1.5, 0.05), seed=None)
    button.click()
    assert said == [SaySettings(text="Chào.")]
    widgets["text"].value, widgets["temperature"].value, widgets["seed"].value = "Vâng.", 0.9, 7
    button.click()
    assert said[1] == SaySettings(text="Vâng.", temperature=0.9, seed=7)
    assert not button.disabled and "always the most likely" in widgets["temperature"].tooltip


def test_a_wrong_value_is_told_and_the_button_works_again(said, capsys):
    widgets, button = box(said, text=None, seed=None)
    widgets["text"].value = "?!"
    button.click()
    assert said == [] and "must hold at least one word" in capsys.readouterr().out
    widgets["text"].value, widgets["seed"].value = "Vâng.", -1
    button.click()
    assert said == [] and "the parameter seed is -1" in capsys.readouterr().out
    widgets["seed"].value = 1
    button.click()
    assert said == [SaySettings(text="Vâng.", seed=1)] and not button.disabled


def test_a_slider_reaches_a_value_beyond_its_range(said):
    made = dials(SaySettings(temperature=3), dict(temperature=(0, 1.5, 0.1)), said.append, "Say")
    assert (made.children[0].value, made.children[0].max) == (3, 3)


def test_a_dial_is_not_wider_than_a_narrow_window(said):
    widgets, _ = box(said, text=None, temperature=(0, 1.5, 0.05), seed=None)
    assert {w.layout.max_width for w in widgets.values()} == {"100%"}


def test_only_a_frontend_that_can_be_asked_is_live(monkeypatch):
    "Jupyter's frontends let a cell ask for input; nbclient (papermill, nbconvert) does not."
    assert not is_live()
    manager, client = start_new_kernel()
    try:
        shown = []

        def hook(message):
            shown.append(message["content"].get("text", ""))

        for live in (True, False):
            code = "from higgs_vi.dials import is_live; print(is_live())"
            client.execute_interactive(code, allow_stdin=live, output_hook=hook, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "".join(shown).split() == ["True", "False"]


def test_the_stored_notebook_offers_the_dials_and_holds_no_widget():
    offered = [source(c) for c in cells(SAY) if "dials(" in source(c)]
    assert len(offered) == 1 and "if is_live()" in offered[0]
    names = re.findall(r"(\w+)=(?:None|\()", offered[0])
    assert names == ["text", "temperature", "top_p", "guidance_scale", "seed"]
    assert "widget" not in json.dumps([c["outputs"] for c in cells(SAY)])
