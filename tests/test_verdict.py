"""Intervals, paired differences and stops: what they cover, how often they are wrong, how fast."""
import re
import time

import numpy as np
import pandas as pd
import pytest

from higgs_vi.verdict import (
    _interval,
    falling,
    html_table,
    paired,
    summary,
    verdict,
    word_columns,
    write_csv,
)
from higgs_vi.wer import corpus, score_words

RATE, SPEAKERS, EACH = 0.05, 30, 10


def spoken(draw, row, rates, liked):
    "Ten clips of each of 30 speakers, whose word error rates and naturalness are given."
    length, noise = draw.integers(5, 40, SPEAKERS * EACH), draw.normal(0, 1, SPEAKERS * EACH)
    return pd.DataFrame(
        dict(
            row=row,
            sentence=np.arange(SPEAKERS * EACH),
            speaker=np.arange(SPEAKERS).repeat(EACH),
            words=length,
            word_errors=draw.binomial(length, rates.repeat(EACH)),
            naturalness=liked.repeat(EACH) + noise,
        )
    )


def population(draw, skewed):
    "Error rates of 30 speakers (mean `RATE`), and how much each is liked (mean 0)."
    first = 1 if skewed else 4
    rates = draw.beta(first, first * (1 / RATE - 1), SPEAKERS)
    return rates, draw.gamma(first, 1, SPEAKERS) - first


def coverage(tables, skewed):
    draw, within = np.random.default_rng(1), []
    for _ in range(tables):
        found = summary(spoken(draw, "a", *population(draw, skewed)), resamples=2000)
        truth = found.score.map(dict(wer=RATE, naturalness=0))
        within.append((found.low <= truth) & (truth <= found.high))
    return dict(zip(found.score, np.mean(within, 0), strict=True))


def false_differences(tables, skewed):
    "Share of pairs of equal systems called different; a speaker is hard for both, with some luck."
    draw, called = np.random.default_rng(2), []
    for _ in range(tables):
        hard, liked = population(draw, skewed)
        rates = [np.clip(hard * 2 * draw.beta(20, 20, SPEAKERS), 0, 1) for _ in "ab"]
        two = pd.concat([spoken(draw, r, p, liked) for r, p in zip("ab", rates, strict=True)])
        found = paired(two, "a", "b", resamples=2000)
        said = [verdict(line, True) for line in found.to_dict("records")]
        called.append([not text.startswith("no difference seen") for text in said])
    return dict(zip(found.score, np.mean(called, 0), strict=True))


@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_covers_the_truth_and_equal_systems_are_seldom_called_different(skewed):
    "With few tables; the bounds are those of the slow test with two standard errors (0.025)."
    covered, called = coverage(80, skewed), false_differences(80, skewed)
    assert set(covered) == set(called) == {"wer", "naturalness"}
    assert all(0.87 <= share <= 0.995 for share in covered.values()), covered
    assert all(share <= 0.11 for share in called.values()), called


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
def test_coverage_and_false_differences_over_many_tables(skewed):
    covered, called = coverage(2000, skewed), false_differences(2000, skewed)
    print("skewed" if skewed else "mild", covered, called)
    assert all(0.92 <= share <= 0.97 for share in covered.values())
    assert all(share <= 0.06 for share in called.values())


@pytest.mark.parametrize("k, t", [(8, 2.365), (30, 2.045)])  # Student's t for k - 1
def test_few_clusters_widen_the_interval(k, t):
    estimates = np.random.default_rng(0).normal(0, 1, 400_000)
    assert _interval(estimates, k)[1] == pytest.approx(t * np.sqrt(k / (k - 1)), rel=0.02)
    assert np.isnan(_interval(estimates, 1)).all()


def test_a_real_difference_is_seen():
    draw, seen = np.random.default_rng(3), 0
    for _ in range(50):
        hard, liked = population(draw, False)
        two = [spoken(draw, "a", hard, liked), spoken(draw, "b", hard / 2, liked)]
        line = paired(pd.concat(two), "a", "b", resamples=2000).iloc[0]
        seen += verdict(line, higher_is_better=False).startswith("better by")
    assert seen >= 48


def clips(row="a", sentences=12, **columns):
    return pd.DataFrame(dict(row=row, sentence=[f"s{i}" for i in range(sentences)]) | columns)


def test_what_was_not_scored_is_counted_and_never_zero():
    table = clips(char_errors=[2.0] * 10 + [np.nan, 0], chars=[20.0] * 10 + [20, 0], mos=4.0)
    table.loc[0, "mos"] = np.nan
    found = summary(table).set_index("score")
    assert found.loc["cer", ["value", "low", "high"]].tolist() == pytest.approx([0.1] * 3)
    assert found.loc["cer", ["n", "n_missing"]].tolist() == [10, 2]
    assert found.loc["mos", ["value", "n", "n_missing"]].tolist() == [4, 11, 1]
    empty = summary(clips(mos=np.nan)).iloc[0]
    assert np.isnan(empty.value) and (empty.n, empty.n_missing) == (0, 12)


def test_booleans_with_gaps_are_a_score_and_texts_are_none():
    table = clips(ended=[True] * 6 + [False] * 3 + [None] * 3, heard=["a"] * 11 + [None])
    found = summary(table)
    assert found[["score", "n", "n_missing"]].values.tolist() == [["ended", 9, 3]]
    assert found.value[0] == pytest.approx(2 / 3)


def test_the_value_is_a_ratio_of_sums_and_a_mean():
    table = clips(sentences=2, right_tones=[1, 30], syllables=[2, 30], tones=[0.5, 1], rate=[4, 6])
    found = summary(table).set_index("score").value
    assert found.to_dict() == pytest.approx(dict(tones=31 / 32, rate=5))


def test_seeds_are_averaged_so_that_a_sentence_counts_once():
    table = pd.concat([clips(seed=s, mos=range(12)) for s in range(3)] + [clips(seed=3, mos=0)[:1]])
    table.loc[(table.sentence == "s11") & (table.seed > 0), "mos"] = np.nan
    assert summary(table).iloc[0].value == pytest.approx(np.mean(range(12)))
    once, thrice = summary(table[table.seed == 0]).iloc[0], summary(table).iloc[0]
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))
    assert (thrice.n, thrice.clusters, thrice.unit) == (35, 12, "sentences")


def test_speakers_are_resampled_if_there_are_eight():
    for speakers, unit, clusters in ((7, "sentences", 70), (8, "speakers", 8)):
        speaker = np.arange(80) % 10 % speakers if unit == "sentences" else np.arange(80) % speakers
        table = clips(sentences=80, speaker=[f"v{s}" for s in speaker], mos=np.arange(80.0))
        table = table[:70] if unit == "sentences" else table
        line = summary(table).iloc[0]
        assert (line.unit, line.clusters) == (unit, clusters)
    table.loc[:1, "speaker"] = [None, np.nan]  # each of these two is a cluster of its own
    assert summary(table).iloc[0].clusters == 10


def test_the_interval_knows_that_clips_of_a_speaker_are_alike():
    draw = np.random.default_rng(4)
    liked, speaker = draw.normal(0, 1, 20), np.arange(20).repeat(50)
    table = clips(sentences=1000, speaker=speaker, mos=liked.repeat(50) + draw.normal(0, 1, 1000))
    by_speaker = summary(table).iloc[0]
    by_sentence = summary(table.assign(speaker="")).iloc[0]
    assert by_speaker.high - by_speaker.low > 4 * (by_sentence.high - by_sentence.low)


def test_groups_have_their_own_lines():
    table = clips(group=["short"] * 6 + ["long"] * 6, mos=[1.0] * 6 + [3.0] * 6)
    found = summary(table, by=("row", "group"))
    assert found[["row", "group", "value", "n"]].values.tolist() == [
        ["a", "short", 1, 6],
        ["a", "long", 3, 6],
    ]


def test_only_clips_of_the_same_sentence_and_seed_are_paired():
    a = pd.concat([clips("a", seed=s, mos=np.arange(12.0) + s) for s in (1, 2)])
    b = pd.concat([clips("b", seed=s, mos=np.arange(12.0) + s + 0.5) for s in (2, 3)])
    line = paired(pd.concat([a, b]), "a", "b").iloc[0]
    assert [line.difference, line.low, line.high] == pytest.approx([0.5] * 3)
    assert (line.n, line.n_missing, line.clusters) == (12, 24, 12)


@pytest.mark.parametrize("order", [("ours", "recording"), ("recording", "ours")])
def test_recordings_without_seeds_are_paired_with_the_average_of_the_seeds(order):
    ours = pd.concat([clips("ours", seed=s, mos=np.arange(12.0) + s) for s in (0, 1, 2)])
    ours.loc[(ours.sentence == "s3") & (ours.seed != 1), "mos"] = np.nan
    recording = clips("recording", mos=np.arange(12.0) + 3)
    recording.loc[0, "mos"] = np.nan
    line = paired(pd.concat([ours, recording]), *order).iloc[0]
    assert abs(line.difference) == pytest.approx(2) and (line.n, line.n_missing) == (11, 1)


def test_the_result_depends_on_the_seed_and_not_on_the_order_of_the_lines():
    table = spoken(np.random.default_rng(5), "a", *population(np.random.default_rng(6), True))
    first = summary(table, seed=1)
    pd.testing.assert_frame_equal(first, summary(table, seed=1))
    pd.testing.assert_frame_equal(first, summary(table.sample(frac=1, random_state=0), seed=1))
    assert (first.low != summary(table, seed=2).low).all()


def test_ten_thousand_resamples_of_600_clips_take_less_than_two_seconds():
    draw = np.random.default_rng(7)
    two = [clips(r, 600, words=12, word_errors=draw.integers(0, 3, 600)) for r in "ab"]
    table, start = pd.concat(two), time.process_time()
    paired(table, "a", "b")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda t: t.drop(columns="row"), "no column row"),
        (lambda t: t.drop(columns="chars"), "char_errors but not its partner for cer"),
        (lambda t: pd.concat([t, t[:1]]), "has a clip twice .*'s0'"),
        (lambda t: t.assign(sentence=None), "line 1 of the table has no sentence"),
        (lambda t: t.assign(mos=np.inf), "has mos inf for sentence 's0' of 'a'"),
        (lambda t: t.assign(char_errors=-1), "has char_errors -1 of chars 9 for sentence 's0'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(change, why):
    with pytest.raises(ValueError, match=why):
        summary(change(clips(char_errors=1, chars=9, mos=3.0)))


def test_word_scores_become_columns_that_add_up():
    pairs = [("Hôm nay trời đẹp quá!", "hôm nay trời dép"), ("Ăn cơm.", "ăn cơm"), ("?!", "ơ"),
             ("Mình đi.", ""), ("Hello world", "hello word")]
    scores = [score_words(*pair) for pair in pairs]
    table = clips(sentences=5).join(pd.DataFrame([word_columns(score) for score in scores]))
    found, whole = summary(table).set_index("score"), corpus(scores)
    assert found.value.to_dict() == pytest.approx(
        dict(cer=whole["cer"], wer=whole["wer"], tones=whole["right_tones"])
    )
    assert found.n.to_dict() == dict(cer=4, wer=4, tones=3)


def test_unknown_systems_and_groupings_are_refused():
    with pytest.raises(ValueError, match="no row 'b': it has 'a'"):
        paired(clips(mos=1.0), "a", "b")
    with pytest.raises(ValueError, match="by has 'dialect'"):
        summary(clips(mos=1.0), by=("dialect",))


def line(difference, low, high, n=200, clusters=40, n_missing=0):
    return dict(difference=difference, low=low, high=high, n=n, clusters=clusters, unit="speakers",
                n_missing=n_missing)


@pytest.mark.parametrize(
    "row, higher_is_better, said",
    [
        (line(0.03, 0.01, 0.05), True, "better by 0.030 (95 % 0.010 to 0.050, n = 200)"),
        (line(0.03, 0.01, 0.05), False, "worse by 0.030 (95 % 0.010 to 0.050, n = 200)"),
        (line(-0.3, -0.5, -0.1), False, "better by 0.30 (95 % 0.10 to 0.50, n = 200)"),
        (line(-0.3, -0.5, -0.1), True, "worse by 0.30 (95 % 0.10 to 0.50, n = 200)"),
        (
            line(0.01, -0.02, 0.04, n_missing=3),
            True,
            "no difference seen (difference 0.010, 95 % -0.020 to 0.040, n = 200, 3 not compared)",
        ),
        (
            line(0.3, 0.1, 0.5, 20, 7),
            True,
            "too few to tell (difference 0.30, 7 speakers of the 8 needed, n = 20)",
        ),
        (line(*[np.nan] * 3, 0, 0, 5), True, "not scored (n = 0, 5 not compared)"),
        (line(0, 0, 0), True, "no difference seen (difference 0.000, 95 % 0.000 to 0.000, n ="),
        (line(np.nan, np.nan, np.nan, 1, 1), True, "too few to tell (difference nan, 1 speakers"),
    ],
)
def test_the_verdict_in_words(row, higher_is_better, said):
    assert verdict(row, higher_is_better).startswith(said)


def evaluations(draw, n, kind, drops):
    "Scores (evaluations, `n`), higher is better, at evaluations that have lost `drops`."
    hard = draw.normal(0, 1, n)
    drops = np.reshape(drops, (-1, 1))
    if kind == "normal": return hard + draw.normal(0, 1, (len(drops), n)) - drops
    rates = 0.03 * np.exp(hard) / np.exp(0.5)
    return -draw.binomial(30, np.clip(rates + drops, 0, 1)) / 30


@pytest.mark.parametrize("kind", ["normal", "error rates"])
@pytest.mark.parametrize("n", [8, 50])
def test_a_run_without_change_is_seldom_stopped(kind, n):
    draw, stopped = np.random.default_rng(8), 0
    for _ in range(400):
        history = evaluations(draw, n, kind, [0] * 10)
        stopped += any(falling(history[:k]) for k in range(2, 11))
    assert stopped <= 0.05 * 400


def test_a_run_that_gets_worse_is_stopped():
    for kind, drop in (("normal", 0.5), ("error rates", 0.03)):
        draw, stopped = np.random.default_rng(9), 0
        for _ in range(100):
            history = evaluations(draw, 60, kind, [0] * 5 + [drop] * 5)
            stopped += any(falling(history[:k]) for k in range(6, 11))
        assert stopped >= 90, kind


def test_what_falling_compares():
    rising = [np.full(20, score) for score in (1.0, 2.0, 3.0)]
    assert not falling(rising) and falling(rising, higher_is_better=False)
    assert falling([*rising, np.full(20, 2.5)])  # better than the first, worse than the best
    others = {f"s{i}": 1.0 for i in range(19)}
    assert not falling([dict(a=5.0), others | dict(a=1.0)])  # only one sentence is in both
    with pytest.raises(ValueError, match="infinite score"):
        falling([np.full(20, np.inf), np.zeros(20)])


def test_the_html_table_has_no_colours_and_escapes_names(tmp_path):
    table = pd.concat([clips("<i>a</i>", mos=np.arange(12.0)), clips("b", mos=np.arange(12.0))])
    table.loc[table.index[0], "mos"] = np.nan
    for page in (html_table(summary(table)), html_table(paired(table, "<i>a</i>", "b"))):
        assert "&lt;i&gt;a&lt;/i&gt;" in page and "<i>" not in page and "overflow-x:auto" in page
        assert not re.search(r"(?<!-)color|background", page) and "missing" in page
    assert "b minus &lt;i&gt;a" in page
    unscored = html_table(summary(clips(mos=np.nan)))
    assert "not scored" in unscored and "nan" not in unscored
    write_csv(tmp_path / "new" / "found.csv", summary(table))
    assert pd.read_csv(tmp_path / "new" / "found.csv").n.tolist() == [11, 11]
