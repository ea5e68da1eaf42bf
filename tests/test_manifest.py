"""The record of a clip, and the one reader and writer of metadata.json."""
import json
import random

import pytest

from higgs_vi.files import atomic
from higgs_vi.manifest import (
    Manifest,
    Sample,
    as_table,
    load_texts,
    read_manifest,
    read_samples,
    write_manifest,
)

RECORD = dict(id="a", audio_file="a.wav", transcript_file="a.txt", speaker_id="lan")


def metadata(folder, *records, **head):
    "Write a metadata.json and return its object."
    meta = head | dict(samples=list(records))
    (folder / "metadata.json").write_text(json.dumps(meta), encoding="utf-8")
    return meta


@pytest.mark.parametrize("seed", range(5))
def test_a_file_that_is_read_and_written_again_holds_the_same_json(tmp_path, seed):
    "In any field order, with unknown fields, nulls, and keys beside samples."
    rng = random.Random(seed)
    records = []
    for i in range(20):
        more = dict(
            mood=[1, None, {"x": 2}],
            text="not the transcript",
            folder="x",
            extra={},
            order=1,
            split=None,
            quality_score=None,
            duration="3 s",
            ref_speakers=["b"],
            weight=0.5,
        )
        fields = [*RECORD.items(), *rng.sample(list(more.items()), rng.randint(0, len(more)))]
        rng.shuffle(fields)
        records.append(dict(fields) | dict(id=f"a{i}"))
    before = metadata(tmp_path, *records, made_by="somebody", dataset_info=dict(hours=1))
    write_manifest(tmp_path, read_manifest(tmp_path))
    after = (tmp_path / "metadata.json").read_text(encoding="utf-8")
    assert json.dumps(json.loads(after)) == json.dumps(before), "keys in the same order, too"


def test_a_sample_is_a_mapping_of_the_fields_that_its_file_has():
    s = Sample.of(RECORD | dict(mood="calm", split=None))
    assert s == RECORD | dict(mood="calm", split=None) and dict(s) == s.to_dict()
    assert s["mood"] == "calm" and s.get("weight") is None and s.weight is None
    assert "split" in s and "weight" not in s and "extra" not in s and "text" not in s
    with pytest.raises(KeyError): s["weight"]
    new = s | dict(weight=2.0, text="Xin chào.", mood="gay")
    assert list(new) == [*s, "weight", "text"] and list(new.to_dict()) == [*s, "weight"]
    assert new.text == new["text"] == "Xin chào." and new["mood"] == "gay" and s["mood"] == "calm"
    with pytest.raises(AttributeError): s.split = "test"
    made = Sample(id="b", speaker_id="lan", duration=1.0, extra=dict(mood="calm"))
    assert made.to_dict() == dict(id="b", duration=1.0, speaker_id="lan", mood="calm")


def test_a_transcript_and_a_field_named_text_are_two_things(tmp_path):
    (tmp_path / "a.txt").write_text("Xin chào.\n", encoding="utf-8")
    metadata(tmp_path, RECORD | dict(text="theirs"))
    sample, = read_samples(tmp_path)
    assert sample.text == sample["text"] == "Xin chào." and sample.to_dict()["text"] == "theirs"
    assert as_table([sample])["text"].tolist() == ["Xin chào."]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(id=7), "sample 1: the field id is 7: it must be a string"),
        (dict(speaker_id=None), "sample 1: the field speaker_id is None: it must be a string"),
        (dict(audio_file=["a.wav"]), "sample 1: the field audio_file is .*: it must be a string"),
        (
            dict(ref_speakers=["b", 3]),
            "sample 1: the field ref_speakers is .* a string or a list of strings",
        ),
        (
            dict(tagged={"scene": 1}),
            "sample 1: the field tagged is .* a string or a list of strings",
        ),
    ],
)
def test_a_wrong_type_is_named_with_file_sample_rule_and_way_out(tmp_path, change, words):
    metadata(tmp_path, RECORD, RECORD | change)
    with pytest.raises(
        ValueError, match=rf"metadata\.json is damaged \({words}\): restore it, or make"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"samples": 3}', "samples is not a list of objects"),
        ('{"samples": []}', "holds no clip"),
        ('{"samples": [{"id": "a"}]}', "no sample has the field audio_file"),
        ('{"dataset_info": 3, "samples": []}', "dataset_info is not an object"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff", "damaged"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, words):
    (tmp_path / "metadata.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{words}.*make the folder again with 00_data"):
        read_manifest(tmp_path)


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    metadata(tmp_path, RECORD)
    before = (tmp_path / "metadata.json").read_bytes()

    def torn(path, text):
        with atomic(path) as tmp:
            tmp.write_text(text[:20], encoding="utf-8")
            raise RuntimeError("the power failed")

    monkeypatch.setattr("higgs_vi.manifest.write_text", torn)
    with pytest.raises(RuntimeError):
        write_manifest(tmp_path, Manifest([Sample.of(RECORD | dict(split="test"))], {}))
    assert (tmp_path / "metadata.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metadata.json"]


def test_metadata_is_replaced_and_never_written_in_place(tmp_path):
    "A reader that has the old file open goes on to read the old file."
    metadata(tmp_path, RECORD)
    with (tmp_path / "metadata.json").open(encoding="utf-8") as old:
        write_manifest(tmp_path, Manifest([Sample.of(RECORD | dict(split="test"))], {}))
        assert "split" not in old.read()
    assert read_manifest(tmp_path).samples[0].split == "test"


def test_paths_are_resolved_once_and_stay_inside(tmp_path):
    (tmp_path / "a.txt").write_text("Một.")
    (s,) = load_texts([Sample.of(RECORD | dict(ref_audio_file="b.wav"), tmp_path)])
    assert s.audio_path == (tmp_path / "a.wav").resolve() and s.audio_path is s.audio_path
    assert s.ref_paths == [(tmp_path / "b.wav").resolve()] and s.files == [
        "a.wav",
        "a.txt",
        "b.wav",
    ]
    for bad in (
        dict(audio_file="../a.wav"),
        dict(transcript_file="/etc/passwd"),
        dict(ref_audio_file=["../b.wav"]),
    ):
        with pytest.raises(ValueError, match="leaves the folder"):
            load_texts([s | bad])
