"""Detectors find defects where they were made and nothing in clean speech; a finding leads to its place."""

import math

import numpy as np
import pytest
import soundfile
import torch

from workbench import Finding, Findings, Trace, WorkbenchError, find_glitches
from workbench.cli import main
from workbench.diagnose.glitches.analysis import as_sound, intervals
from workbench.diagnose.glitches.defects import DEFECTS, inject
from workbench.diagnose.glitches.detectors import DETECTORS
from workbench.diagnose.glitches.glitches import load_clean_scores
from workbench.diagnose.glitches.wave_stats import wave_report, wave_stats
from workbench.files import data_path
from workbench.trace.schema import SAMPLE_RATE

RATE = SAMPLE_RATE
PROMPTS = sorted(data_path("prompts").glob("*.flac"))


def speech(name="kumo_alpha_1"):
    wav, rate = soundfile.read(data_path(f"prompts/{name}.flac"), dtype="float32")
    assert rate == RATE
    return torch.from_numpy(wav)


def kinds(found):
    return set(found.table["kind"])


def trace_of(wav, frames=100, **more):
    x = torch.arange((10 + frames) * 80, dtype=torch.float32).reshape(1, 110, 80).mT
    data = {
        "lm/speech_token": torch.arange(frames // 2),
        "flow/x": x.repeat(3, 1, 1),
        "flow/velocity": x.repeat(2, 1, 1),
        "flow/mel": x[0, :, 10:],
        "hift/wav": wav,
    }
    return Trace(data | more, {"prompt_frames": 10, "sample_rate": RATE})


@pytest.mark.slow
@pytest.mark.parametrize("path", PROMPTS, ids=lambda p: p.stem)
def test_nothing_is_found_in_clean_recordings(path):
    found = find_glitches(*soundfile.read(path))
    assert len(found) == 0 and "nothing found" in repr(found)
    found.assert_ok()


@pytest.mark.slow
@pytest.mark.parametrize("severity", [3, 4])
@pytest.mark.parametrize("kind", [k for k in DEFECTS if k not in ("step", "hop")])
def test_defects_are_found_where_they_were_made(kind, severity):
    made = inject(speech(), RATE, kind, severity, seed=1)
    about = {"sample_rate": RATE} | ({"seams": made.seams} if made.seams else {})
    everything = find_glitches(Trace({"hift/wav": made.wav}, about), synthesised=True)
    found = [f for f in everything if f.kind in DEFECTS[kind].finders]
    assert any(f.start <= made.end + 0.05 and f.end >= made.start - 0.05 for f in found)


def test_a_step_in_level_is_found():
    made = inject(speech("alpha_0"), RATE, "step", 4, seed=0)
    step = next(f for f in find_glitches(made.wav, RATE) if f.kind == "step")
    assert step.start - 0.6 < made.start < step.end + 0.6


def test_a_finding_has_the_sample_frame_and_token_of_its_place():
    wav = speech()
    at = 30_000
    wav[at] += 0.9
    found = [f for f in find_glitches(wav, RATE) if f.kind == "click"]
    assert len(found) == 1 and abs(found[0].sample - at) <= 2
    assert found[0].frame == at // 480 and found[0].token == at // 960
    assert found[0].score > found[0].threshold == DETECTORS["click"].threshold
    assert found[0].percentile == 100 and all(
        cause.text in found[0].cause for cause in DETECTORS["click"].causes
    )


def test_a_weak_seam_is_found_only_where_it_was_recorded():
    wav = speech()
    wav[42_000:] += 0.04  # too little for a click
    bare, known = (
        Trace({"hift/wav": wav}, {"sample_rate": RATE} | more) for more in ({}, {"seams": [42_000]})
    )
    assert "seam" not in kinds(find_glitches(bare)) and "seam" in kinds(find_glitches(known))
    assert "seam" not in kinds(find_glitches(Trace({"hift/wav": speech()}, {"seams": [42_000]})))


def test_recorded_f0_tokens_and_mel_are_judged_as_well():
    wav, n = speech(), 160
    f0 = torch.full((n,), 120.0)
    creak, leap, high = f0.clone(), f0.clone(), f0.clone()
    creak[[50, 51, 90]], leap[50:53], high[50] = 60.0, 260.0, 5.8e6
    assert not kinds(find_glitches(Trace({"hift/f0": f0, "hift/wav": wav}, {})))
    assert not kinds(find_glitches(Trace({"hift/f0": creak, "hift/wav": wav}, {})))
    assert kinds(find_glitches(Trace({"hift/f0": leap, "hift/wav": wav}, {}))) == {"leap"}
    assert {"f0", "mel"} <= kinds(find_glitches(Trace({"hift/f0": high, "hift/wav": wav}, {})))
    found = find_glitches(Trace({"lm/speech_token": torch.zeros(60), "hift/wav": wav}, {}))
    assert kinds(found) == {"length"} and "times as long" in found[0].cause
    assert "off mel" in kinds(find_glitches(Trace({"flow/mel": torch.zeros(80, n), "hift/wav": wav}, {})))


def test_a_pause_counts_its_silent_tokens():
    made = inject(speech(), RATE, "pause", 4, seed=1)
    token = torch.ones(len(made.wav) // 960, dtype=torch.long)
    found = find_glitches(Trace({"lm/speech_token": token, "hift/wav": made.wav}, {}))
    pause = next(f for f in found if f.kind == "pause")
    assert "100 of its 100 tokens" in pause.cause or "of its 1" in pause.cause
    assert pause.end - pause.start == pytest.approx(4, abs=0.1)


def test_a_finding_gives_mel_tokens_and_ode_steps_of_its_place():
    trace = trace_of(torch.zeros(48_000))
    finding = Finding("click", 0.4, 0.5, 20, 13, 100, 9600, 20, 10, "")
    assert torch.equal(finding.mel(trace), trace["flow/mel"][:, 20:25])
    assert finding.tokens(trace).tolist() == [10, 11, 12]
    steps = finding.steps(trace)
    assert list(steps) == ["flow/x", "flow/velocity"]
    assert torch.equal(steps["flow/x"], trace["flow/x"][:, :, 30:35]) and steps["flow/velocity"].shape[0] == 2
    assert torch.equal(steps["flow/x"][0], finding.mel(trace))
    beyond = finding._replace(start=9.0, end=9.0)
    assert beyond.mel(trace).shape == (80, 1) and beyond.tokens(trace).shape == (1,)
    for ask in (finding.mel, finding.tokens, finding.steps):
        with pytest.raises(WorkbenchError, match=r"record it|has no"):
            ask(Trace({"hift/wav": torch.zeros(10)}, {}))


def test_a_finding_gives_more_tokens_where_speech_is_faster():
    trace = trace_of(torch.zeros(RATE))
    trace.attrs["options"] = {"speed": 2.0}
    finding = Finding("click", 0.4, 0.5, 20, 13, 100, 9600, 20, 20, "")
    assert finding.tokens(trace).tolist() == [20, 21, 22, 23, 24]
    assert finding.steps(trace)["flow/x"].shape == (3, 80, 10)


@pytest.mark.parametrize(
    ("wav", "expected"),
    [
        (torch.zeros(1), {"dead"}),
        (torch.zeros(2400), {"dead"}),
        (torch.full((2400,), math.nan), {"dead", "not finite"}),
        (torch.full((48_000,), -math.inf), {"dead", "not finite"}),
        (torch.ones(2400), {"dead", "offset"}),
        (np.zeros(2400, dtype=np.int16), {"dead"}),
        (speech() * 32768, {"beyond"}),
        (0.1 * torch.sin(torch.arange(2400) / 10).half(), None),
        (torch.full((2400,), 1e300, dtype=torch.float64), {"beyond", "dead", "offset"}),
    ],
)
def test_degenerate_waveforms_are_judged_without_an_error(wav, expected):
    found = find_glitches(wav, RATE, synthesised=True)
    assert expected is None or kinds(found) >= expected
    assert all(0 <= f.start <= f.end <= found.seconds for f in found)
    assert isinstance(found._repr_html_(), str)
    wave_report(torch.as_tensor(wav), RATE)


@pytest.mark.parametrize("rate", [1000, 8000, 16_000, 48_000])
def test_other_sample_rates_are_accepted(rate):
    wav = torch.randn(rate, generator=torch.Generator().manual_seed(0)) * 0.1
    assert "unvoiced" in kinds(find_glitches(wav, rate)) or rate < 8000


@pytest.mark.parametrize(
    ("wav", "rate"),
    [
        (torch.zeros(2, 2400), RATE),
        (torch.zeros(0), RATE),
        (torch.zeros(2400), None),
        (torch.zeros(2400), 0),
        (np.array(["a"]), RATE),
        (torch.zeros(2400, dtype=torch.complex64), RATE),
        (torch.zeros(301 * 1000), 1000),
        (Trace({"hift/f0": torch.zeros(3)}, {}), None),
    ],
)
def test_bad_waveforms_and_rates_are_refused(wav, rate):
    with pytest.raises(WorkbenchError, match=r"expected|holds no hift/wav"):
        find_glitches(wav, rate)


def test_text_of_a_finding_is_escaped_in_html():
    bad = Finding("<script>", 0, 0, 1, 1, 1, 0, 0, 0, "<img src=x onerror=alert(1)>")
    html = Findings([bad], 1.0)._repr_html_()
    assert "<script>" not in html and "<img" not in html and "&lt;script&gt;" in html


def test_findings_are_a_table():
    found = find_glitches(inject(speech(), RATE, "not finite", 2).wav, RATE)
    assert list(found.table.columns) == list(Finding._fields) and len(found) == len(found.to_frame()) > 0
    assert [f.kind for f in found] == found.table["kind"].tolist() and found[0] == next(iter(found))
    copy = found.to_frame()
    copy["kind"] = "x"
    assert "x" not in kinds(found)
    with pytest.raises(WorkbenchError, match="not finite"):
        found.assert_ok()


def test_defects_are_seeded():
    a, b, c = (inject(speech(), RATE, "click", 2, seed).wav for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    for kind, severity in (("scratch", 1), ("click", 5)):
        with pytest.raises(WorkbenchError, match="expected"):
            inject(speech(), RATE, kind, severity)
    with pytest.raises(WorkbenchError, match="too little speech"):
        inject(torch.zeros(RATE), RATE, "click", 1)


def test_every_detector_has_clean_scores_unless_clean_speech_has_none():
    scores = load_clean_scores()
    assert set(scores) == set(DETECTORS) and all(s == sorted(s) for s in scores.values())
    assert {kind for kind, s in scores.items() if not s} <= {"not finite", "beyond", "seam", "mel", "wait"}


def test_residual_of_a_predictable_wave_is_small():
    tone = torch.sin(torch.arange(RATE) * 0.1)
    sound = as_sound(tone, RATE)
    assert len(sound.residual) == RATE
    assert np.abs(sound.residual[500:-500]).max() < 0.02
    assert intervals(np.array([True, False, True, True])) == [(0, 1), (2, 4)]


def test_wave_report_of_a_known_wave():
    t = torch.arange(2 * RATE, dtype=torch.float64) / RATE
    # A quarter of the rate and an eighth of a turn: no sample is at the peak, which lies 3 dB above.
    wav = torch.sin(2 * math.pi * 6000 * t + math.pi / 4)
    report = wave_report(wav, RATE)
    assert wave_stats(wav, RATE).items() <= report.items()
    assert report["peak"] == pytest.approx(0.5**0.5) and report["true_peak"] == pytest.approx(0, abs=0.2)
    assert report["zero_crossings"] == pytest.approx(12_000, rel=1e-3)
    tone = 10 ** (-20 / 20) * torch.sin(2 * math.pi * 997 * t)
    assert wave_report(tone, RATE)["lufs"] == pytest.approx(-23, abs=0.2)
    assert wave_report(tone, RATE)["lufs_momentary"] == pytest.approx(-23, abs=0.3)
    odd = torch.tensor([0.0, 0.0, 0.0, 0.5, math.nan, math.inf, 1e-40])
    report = wave_report(odd, RATE)
    assert (report["flat"], report["nan"], report["inf"], report["denormal"]) == (3, 1, 1, 1)
    assert math.isnan(report["lufs"]) and report["nonfinite"] == 2


def test_glitches_verb_prints_findings_and_sets_the_exit_code(tmp_path, capsys):
    made = inject(speech(), RATE, "gap", 4).wav
    soundfile.write(tmp_path / "gap.wav", made.numpy(), RATE)
    Trace({"hift/wav": speech()}, {"sample_rate": RATE}).save(tmp_path / "clean.trace")
    paths = [str(tmp_path / name) for name in ("clean.trace", "gap.wav")]
    assert main(["glitches", *paths]) == 0
    out = capsys.readouterr().out
    assert "clean.trace: nothing found" in out and "lost chunk" in out
    assert (
        main(["glitches", *paths, "--fail-on-any"]) == 1
        and main(["glitches", paths[0], "--fail-on-any"]) == 0
    )
    assert main(["glitches", str(tmp_path / "none.wav")]) == 2


def test_a_pass_of_a_stream_may_end_amid_speech_and_hold_frames_back():
    wav, token = speech(), torch.zeros(86)
    amid = int(wav[:60_000].abs().argmax()) + 1
    fields = {"lm/speech_token": token, "hift/wav": wav[:amid], "in/text_token": torch.zeros(1, dtype=int)}
    whole = kinds(find_glitches(Trace(fields, {"sample_rate": RATE})))
    assert {"length", "stop cut"} <= whole
    assert not {"length", "stop cut", "pace"} & kinds(
        find_glitches(Trace(fields, {"sample_rate": RATE, "streaming": 1}))
    )
    joined = Trace(fields, {"sample_rate": RATE, "streaming": True, "seams": [amid // 2]})
    assert {"length", "stop cut"} <= kinds(find_glitches(joined))


def test_the_target_of_a_conversion_has_the_frames_that_an_untrimmed_prompt_lacks():
    wav, n = speech(), 100  # frames
    prompt = {"in/flow_prompt_token": torch.zeros(30, dtype=int), "in/prompt_mel": torch.zeros(80, 57)}
    made = {"lm/speech_token": torch.zeros((n - 4) // 2), "hift/wav": wav[: 480 * (n - 1)]}
    assert "length" not in kinds(find_glitches(Trace(prompt | made, {"sample_rate": RATE})))
    lost = made | {"hift/wav": wav[: 480 * (n - 9)]}
    assert "length" in kinds(find_glitches(Trace(prompt | lost, {"sample_rate": RATE})))


def test_a_text_that_begins_with_an_instruction_has_no_pace():
    made = {
        "lm/speech_token": torch.zeros(80),
        "hift/wav": speech(),
        "in/text_token": torch.zeros(90, dtype=int),
    }
    for prompt_text, judged in ((torch.zeros(9, dtype=int), True), (torch.zeros(0, dtype=int), False)):
        trace = Trace(made | {"in/prompt_text_token": prompt_text}, {"sample_rate": RATE})
        assert ("pace" in kinds(find_glitches(trace))) == judged
