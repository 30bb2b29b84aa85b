"""The benchmark of the detectors: corpora of recordings, false alarms by corpus and rate, and what is left out."""

import pandas as pd
import pytest
import soundfile
import torch

from workbench import Trace, WorkbenchError
from workbench.cli import main
from workbench.diagnose.glitches import benchmark
from workbench.diagnose.glitches.defects import DEFECTS
from workbench.files import data_path

PROMPT = data_path("prompts/nezumi_0.flac")


@pytest.fixture
def folder(tmp_path):
    """A corpus of a clean recording and one with an offset."""
    corpus = tmp_path / "voices"
    corpus.mkdir()
    wav, rate = soundfile.read(PROMPT)
    soundfile.write(corpus / "clean.wav", wav, rate)
    soundfile.write(corpus / "OFFSET.WAV", wav + 0.02, rate)
    (corpus / "notes.txt").write_text("no sound")
    return corpus


def test_a_folder_is_a_corpus_and_a_file_of_any_rate_belongs_to_the_files(folder, tmp_path):
    other = tmp_path / "other.wav"
    soundfile.write(other, torch.randn(11_025).mul(0.1).numpy(), 11_025)
    found = list(benchmark.recordings([folder, other]))
    assert [(c.corpus, c.name) for c in found] == [
        ("voices", "OFFSET.WAV"),
        ("voices", "clean.wav"),
        (benchmark.FILES, "other.wav"),
    ]
    assert found[2].trace.sample_rate == 11_025


def test_recordings_that_cannot_be_judged_are_refused_by_name(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    long = tmp_path / "long.wav"
    soundfile.write(long, torch.zeros(301 * 1000).numpy(), 1000)
    for path, expected in (
        (empty, "no sound files"),
        (tmp_path / "none.wav", "none.wav"),
        (long, "long.wav"),
    ):
        with pytest.raises(WorkbenchError, match=expected):
            list(benchmark.recordings([path]))


def test_a_bad_recording_ends_the_bench_before_a_voice_is_opened(tmp_path, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    assert main(["bench", "glitches", "--clean", str(bad), "--voice", str(tmp_path / "nowhere")]) == 2
    assert "bad.wav" in capsys.readouterr().err


def test_false_alarms_are_counted_by_corpus_rate_and_kind(folder):
    clean = list(benchmark.recordings([folder]))
    clicked = clean[1].trace.wav.clone()
    clicked[30_000] += 0.9
    clean.append(benchmark.Clean("clicks", "a", Trace({"hift/wav": clicked}, {"sample_rate": 24_000})))
    alarms = benchmark.false_alarms([*clean, *benchmark.resampled(clean[:2], [16_000, 24_000])])
    rates = benchmark.alarm_rates(alarms).set_index(["corpus", "rate"])
    assert set(rates.index) == {("voices", 24_000), ("voices", 16_000), ("clicks", 24_000)}
    minutes = clicked.shape[0] / 24_000 / 60
    assert rates.loc[("clicks", 24_000), "defects/min"] == pytest.approx(1 / minutes)
    assert rates.loc[("clicks", 24_000), "which"] == "1 click"
    assert rates.loc[("voices", 16_000), "defects/min"] == 0 < rates.loc[("voices", 16_000), "properties/min"]


def test_an_utterance_that_has_a_defect_already_is_left_out(folder, monkeypatch):
    monkeypatch.setattr(benchmark, "DEFECTS", {kind: DEFECTS[kind] for kind in ("offset", "not finite")})
    found = benchmark.detection(benchmark.recordings([folder]))
    table = benchmark.summary(found, pd.DataFrame({"wav": [True]}))
    assert table["n"].tolist() == [1, 2, 1] and table["3"][:2].tolist() == [100, 100]
