"""What judges hear of quantised weights: before and after, broken voices, chance, and what nobody judged."""

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.diagnose.precision import bisect_precision
from workbench.diagnose.quantisation.heard import HeardChange, heard_change, judged_before
from workbench.diagnose.quantisation.measure import Change, References
from workbench.diagnose.quantisation.recommend import recommend

KNOWN = wb.data_path("accuracy/quantise.csv")


@pytest.fixture(scope="module")
def references(pipe, utt, short):
    return References(pipe, utt, short, [7, 8])


@pytest.fixture(autouse=True)
def quality(monkeypatch):
    """DNSMOS takes a second a sound, and its own test covers it."""
    monkeypatch.setattr("workbench.diagnose.quantisation.heard.dnsmos", lambda sound: 3.0)


def says(text):
    return lambda wav, rate: text


def made_up(texts, words=10, before=1, after=2, dnsmos=3.0):
    rows = [
        {
            "text": f"text {i}",
            "seed": 0,
            "tokens": tokens,
            "words": words,
            "wrong_before": before,
            "wrong": after,
            "dnsmos_before": dnsmos,
            "dnsmos": dnsmos - 0.1,
        }
        for i in range(texts)
        for tokens in ("own", "same")
    ]
    return HeardChange(pd.DataFrame(rows))


@pytest.mark.slow
def test_each_run_is_heard_with_own_and_with_the_same_tokens(references, pipe, short):
    sounds = []

    def judge(wav, rate):
        sounds.append(torch.from_numpy(wav))
        return "Eight months"

    found = heard_change(references, "*=q4_0", judge)
    rows = found.rows
    assert rows["tokens"].tolist() == ["own", "same"] * 2 and rows["seed"].tolist() == [7, 7, 8, 8]
    assert set(rows["words"]) == {4} and set(rows["wrong"]) == set(rows["wrong_before"]) == {2}
    (utt, seed), run = references.inputs[0], references.runs[0]
    own = pipe.synthesise(utt, seed=seed, options=short.but(weights="*=q4_0"))
    same = pipe.replay(run, "flow", short.but(weights="*=q4_0"))
    assert len(sounds) == 6 and torch.equal(sounds[0], run.wav)
    assert torch.allclose(sounds[2], own.wav, atol=1e-4) and torch.allclose(sounds[3], same.wav, atol=1e-4)
    assert torch.equal(pipe.synthesise(utt, seed=seed, options=short).wav, run.wav)  # put back


@pytest.mark.slow
def test_a_format_that_changes_nothing_changes_no_word(references):
    rows = heard_change(references, "lm=float32", says("Eight moons")).rows
    assert (rows["wrong"] == rows["wrong_before"]).all() and (rows["wrong"] == 3).all()


def test_of_a_voice_that_breaks_all_words_are_wrong(references, pipe, monkeypatch):
    def broken(*args, **kwargs):
        raise wb.WorkbenchError("the flow made a mel of NaN")

    monkeypatch.setattr(pipe, "replay", broken)
    silent = wb.Trace({"hift/wav": torch.zeros(24_000)}, {})
    monkeypatch.setattr(pipe, "synthesise", lambda *args, **kwargs: silent)
    found = heard_change(references, "flow=q8_0", says("Eight months to Mars"))
    assert set(found.rows["wrong_before"]) == {0} and set(found.rows["wrong"]) == {4}
    assert found.rows["dnsmos"].isna().all() and found.table()["wer"].tolist() == [100, 100]


def test_a_change_is_counted_in_words_of_all_texts():
    own, same = made_up(12, before=1, after=2).table().to_dict("records")
    assert own["wer_before"] == 10 and own["wer"] == 20 and own["change"] == pytest.approx(10)
    assert own["low"] == own["high"] == pytest.approx(10)  # every text changes alike
    assert own["dnsmos"] == pytest.approx(2.9) and own["dnsmos_high"] == pytest.approx(-0.1)
    assert own["texts"] == own["runs"] == 12 and own["words"] == 120 and same["tokens"] == "same"


def test_an_interval_covers_what_texts_differ_in():
    found = made_up(40)
    found.rows["wrong"] = [0, 0, 2, 2] * 20  # half of the texts get better, half worse
    own = found.table().iloc[0]
    assert own["low"] < -1 < 1 < own["high"]
    assert "-" in found.line and "to +" in found.line


def test_seeds_of_one_text_are_no_new_texts():
    found = made_up(9)
    more = pd.concat([found.rows.assign(seed=seed) for seed in range(5)])
    own = HeardChange(more).table().iloc[0]
    assert own["texts"] == 9 and own["runs"] == 45 and pd.isna(own["low"])
    assert "9 texts are too few to tell a change from chance" in HeardChange(more).line


@pytest.mark.slow
def test_what_was_not_judged_is_said(pipe, utt, short, monkeypatch):
    monkeypatch.setattr(References, "change", lambda self, weights: Change())
    known = pd.read_csv(KNOWN)
    found = recommend(pipe, utt, budget="60%", options=short, sensitivity=known)
    assert found.heard is None and found.line.endswith("Words and naturalness were not judged")
    assert bisect_precision(pipe, utt, "q8_0", short).line.endswith("Words and naturalness were not judged")
    assert "naturalness was not judged" in made_up(3, dnsmos=float("nan")).line


@pytest.mark.slow
def test_the_lab_lets_a_judge_hear_the_whole(pipe, utt, short, monkeypatch):
    monkeypatch.setattr(References, "change", lambda self, weights: Change())
    asked = {"options": short, "judge": says("Eight months to")}
    found = recommend(pipe, utt, budget="60%", sensitivity=pd.read_csv(KNOWN), **asked)
    assert "Words misheard of 4: 25.0 % -> 25.0 % with own tokens" in found.line
    found = bisect_precision(pipe, utt, "q8_0", **asked)
    assert found.heard.table()["wer"].tolist() == [25, 25] and "DNSMOS 3.00 -> 3.00" in found.line


@pytest.mark.slow
def test_a_judge_that_cannot_judge_is_told_before_anything_is_measured(pipe, utt, short, monkeypatch):
    def measured(self, weights):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(References, "change", measured)
    for judge, message in ((5, "judge is a int"), (says(None), "returned a NoneType")):
        with pytest.raises(wb.WorkbenchError, match=message):
            recommend(pipe, utt, budget="60%", options=short, judge=judge)
        with pytest.raises(wb.WorkbenchError, match=message):
            bisect_precision(pipe, utt, "q8_0", short, judge=judge)
    with pytest.raises(wb.WorkbenchError, match="float16 is half precision"):
        bisect_precision(pipe, utt, "float16", short, judge=says("a"))


@pytest.mark.slow
def test_a_text_without_a_sound_counts_before_as_well(pipe, utt, short):
    references = References(pipe, utt, short, [7])
    references.runs = [wb.Trace({"hift/wav": torch.zeros(10)}, {"text": "Eight months to Mars."})]
    [right] = judged_before(references, says("Eight months to Mars"))
    assert right.wrong == right.words == 4
