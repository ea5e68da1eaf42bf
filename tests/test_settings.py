"""Every step's parameters: their limits, and where their relative paths start."""
import sys
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from higgs_vi import settings as module
from higgs_vi.recipe import TrainSettings
from higgs_vi.settings import (
    find_root,
    from_cli,
    from_notebook,
    project_root,
    resolve_path,
)
from tests.parameters import settings_of
from tests.test_house import STEPS, module_of

CLASSES = [settings_of(p) for p in STEPS]


def outside(f):
    "Values of a numeric field that are not numbers or lie beyond its limits."
    limits, small = f.metadata, 1 if f.type is int else 1e-9
    out = ["nan", "inf", "-inf", "1e400", 2**70, -2**70, True, None, [1], {}, "", "\0"]
    if "min" in limits: out += [limits["min"] - small*max(1, abs(limits["min"])), -2**62]
    if "above" in limits: out += [limits["above"], limits["above"] - 1]
    if "max" in limits: out += [limits["max"] + small*max(1, abs(limits["max"]))*10]
    if "below" in limits: out += [limits["below"], limits["below"] + 1]
    return out + [0.5]*(f.type is int)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_number_has_limits_and_what_lies_outside_is_refused_by_name(cls):
    for f in fields(cls):
        number = f.type in (int, float) or f.metadata.get("each") is float
        if not number:
            continue
        assert {"min", "above"} & set(f.metadata) and {"max", "below"} & set(f.metadata), (
            f"{cls.__name__}.{f.name} has no limits"
        )
        for value in outside(f):
            if f.type is list:
                value = [value]
            with pytest.raises(ValueError, match=f"parameter {f.name} is"):
                cls.of({f.name: value})
        cls.of({f.name: getattr(cls(), f.name)})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_word_is_one_of_its_choices_and_no_text_holds_a_zero_byte(cls):
    for f in fields(cls):
        if f.type is bool: bad = ["perhaps", 2, None, []]
        elif f.type is list: bad = [{}, 5, None]
        elif f.type is str: bad = ["a\0b", None, ["a"], {}]
        else: continue
        if "choices" in f.metadata: bad += ["elsewhere"] if f.type is str else [["elsewhere"]]
        for value in bad:
            with pytest.raises(ValueError, match=f"parameter {f.name} is"): cls.of({f.name: value})


def another(cls, f):
    "An allowed value of field `f` other than its default, as written on a command line."
    default = getattr(cls(), f.name)
    tries = ["another", "7", "another.wav"]
    if f.type is bool: tries = ["false" if default else "true"]
    elif "choices" in f.metadata: tries = f.metadata["choices"]
    elif f.type is int: tries = [default + 1, default - 1, default + 10]
    elif f.type is float: tries = [default*1.01 + 0.01, default*0.99 - 0.01]
    elif f.metadata.get("each") is float: tries = ["1.5", "2", "1.5,1,1"]
    for value in map(str, tries):
        try: taken = getattr(cls.of({f.name: value}), f.name)
        except ValueError: continue
        if taken != default: return value
    raise AssertionError(f"no other value of {cls.__name__}.{f.name} is known")


@pytest.mark.parametrize("path", STEPS, ids=lambda p: p.stem)
def test_every_parameter_of_a_command_reaches_its_settings(path, monkeypatch, start, tmp_path):
    "`--name value` for each parameter, one at a time, through the step's own main."
    step, cls = import_module(f"higgs_vi.{module_of(path)}"), settings_of(path)
    monkeypatch.chdir(tmp_path)

    class Reached(Exception):
        "Raised with the settings instead of doing the step's work."

    def stop(*args):
        raise Reached(from_cli(*args))

    monkeypatch.setattr(step, "from_cli", stop)
    for f in fields(cls):
        value = another(cls, f)
        with pytest.raises(Reached) as reached:
            step.main([f"--{f.name}", value])
        cfg = reached.value.args[0]
        expected = cls.of({f.name: value}).resolved()[f.name]
        assert (
            type(cfg) is cls
            and getattr(cfg, f.name) == expected != getattr(cls(), f.name)
            and cfg.given == {f.name}
        ), f.name


@pytest.mark.parametrize(
    "written", [["--learning-rate", "2e-5"], ["--learning_rate=2e-5"], ["--learning-rate=2e-5"]]
)
def test_hyphens_and_underscores_name_the_same_option(written):
    run = from_cli(TrainSettings, [*written, "--speaker", "a-b_c", "--data=x-y"])
    assert run.learning_rate == 2e-5 and run.speaker == "a-b_c" and run.data.endswith("/x-y")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_a_command_refuses_them_too(cls, capsys):
    f = next((f for f in fields(cls) if f.type in (int, float)), None)
    if f is None: return
    with pytest.raises(SystemExit): from_cli(cls, [f"--{f.name}=nan"])
    assert f"the parameter {f.name} is 'nan': it takes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [dict(gpu_memory=g) for g in ("nan", "inf", "-3", "much")] + [dict(target_modules=[])]
)
def test_what_one_field_alone_cannot_say_is_checked_too(change):
    from higgs_vi.recipe import MemorySettings, TrainSettings

    for cls in (TrainSettings, MemorySettings) if "gpu_memory" in change else (TrainSettings,):
        with pytest.raises(ValueError, match=f"parameter {next(iter(change))} is"):
            cls.of(change)


def test_the_memory_of_a_gpu_is_named_alike_for_forecast_and_training():
    from higgs_vi.recipe import MemorySettings, TrainSettings

    for cls in (TrainSettings, MemorySettings):
        assert [cls.of(dict(gpu_memory=g)).gpu_memory for g in ("auto", 24)] == ["auto", "24"]
        with pytest.raises(ValueError, match="or auto for the GPU's free memory"):
            cls.of(dict(gpu_memory="0"))


def test_a_seed_keeps_its_bits_and_a_number_written_as_text_its_value():
    from higgs_vi.say import SaySettings

    assert (
        SaySettings.of(dict(seed=str(2**32 - 1))).seed == 2**32 - 1
        and SaySettings.of(dict(seed="1e3")).seed == 1000
    )
    assert SaySettings.of(dict(temperature="1e-4")).temperature == 1e-4


def test_the_optimisers_that_settings_take_are_those_that_there_are():
    "The settings repeat the names because 40_step imports torch."
    from higgs_vi.step import OPTIMIZERS
    for cls in CLASSES:
        for f in fields(cls):
            if f.name == "optimizer": assert f.metadata["choices"] == tuple(OPTIMIZERS)


# --- where paths start ----------------------------------------------------------------------------

@pytest.fixture
def start(monkeypatch):
    "Restore the folder where relative paths start after the test."
    monkeypatch.setitem(module._START, "folder", None)


def test_a_command_s_paths_start_at_the_current_directory(tmp_path, monkeypatch, start):
    from higgs_vi.merge import MergeSettings

    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    cfg = from_cli(
        MergeSettings,
        [
            "--adapter",
            "run",
            "--base",
            "base",
            "--codec",
            "org/codec",
            "--output_dir",
            "../x/../merged",
        ],
    )
    assert (cfg.adapter, cfg.base, cfg.codec) == (
        str(tmp_path / "run"),
        str(tmp_path / "base"),
        "org/codec",
    )
    assert cfg.output_dir == str(tmp_path.parent / "merged") and project_root() == tmp_path
    assert resolve_path("./org/codec", hub=True) == str(tmp_path / "org/codec") and resolve_path(
        "~/a"
    ) == str(Path.home() / "a")


def test_a_notebook_s_paths_start_at_our_project_and_at_no_other_one(
    tmp_path, monkeypatch, start, capsys
):
    """Searches upwards for our settings.ini and skips another nbdev project's; without one the
    editable checkout, else the current directory.
    """
    from higgs_vi.listen import ListenSettings

    names = {f.name: getattr(ListenSettings(), f.name) for f in fields(ListenSettings)}
    (tmp_path / "ours/other/deep").mkdir(parents=True)
    (tmp_path / "ours/settings.ini").write_text("[DEFAULT]\nlib_name = higgs_vi\n")
    (tmp_path / "ours/other/settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    monkeypatch.chdir(tmp_path / "ours/other/deep")
    from_notebook(ListenSettings, names)
    assert (
        project_root() == tmp_path / "ours"
        and "the project's root (../..)" in capsys.readouterr().out
    )
    (tmp_path / "ours/settings.ini").write_text("no ini file")
    from_notebook(ListenSettings, names)
    assert (
        project_root() == Path(module.__file__).resolve().parents[1]
        and "the checkout of higgs_vi" in capsys.readouterr().out
    )
    monkeypatch.setattr(module, "_is_ours", lambda folder: False)
    assert find_root() == (tmp_path / "ours/other/deep", "the current directory")


def test_one_folder_under_two_names_is_one(tmp_path, monkeypatch, start):
    from higgs_vi.recipe import TrainSettings

    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nano")
    monkeypatch.setitem(module._START, "folder", tmp_path)
    resolved = [
        TrainSettings(model=m).resolved()["model"]
        for m in ("nano", "./nano", "link", str(tmp_path / "nano"), "../" + tmp_path.name + "/nano")
    ]
    assert set(resolved) == {str(tmp_path / "nano")}


def test_comments_of_a_class_that_a_notebook_defines_come_from_its_cells(monkeypatch):
    cell = (
        'class Mine(Settings):\n    "Mine."\n\n    size: int = 3  # how many\n    name: str = ""\n'
    )
    notebook = ModuleType("notebook")
    notebook.__dict__.update(In=["1 + 1", cell], Settings=module.Settings)
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    exec(cell, notebook.__dict__)
    assert module.comments(dataclass(notebook.Mine)) == dict(size="how many")


@pytest.mark.parametrize("argv, message", [
    (["--rank", "8"], "there is no option --rank: did you mean --lora_rank?"),
    (["--out", "x"], "there is no option --out: did you mean --output_dir?"),  # no prefix of a name
    (["--target_modules", "attention", "audio_ffn"], "unexpected argument 'audio_ffn': join lists"),
])
def test_an_unknown_option_is_refused_with_the_likely_name(argv, message, capsys):
    with pytest.raises(SystemExit): from_cli(TrainSettings, argv)
    assert message in capsys.readouterr().err


def test_a_notebook_is_told_the_likely_name_too():
    with pytest.raises(ValueError, match="unknown parameter 'rank': did you mean 'lora_rank'"):
        TrainSettings.of(dict(rank=8))


def test_the_help_of_check_says_where_the_folder_stands(capsys):
    from higgs_vi.check import main

    with pytest.raises(SystemExit): main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "if it stands first: higgs-vi-check data/mine" in shown
