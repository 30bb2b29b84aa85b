"""The reports of one run and of two runs: their sections, figures, findings and escaped text."""

import json
import re

import pytest
import torch

import workbench as wb
from workbench.cli import main
from workbench.diagnose.benchmarks.accuracy import own_deviation
from workbench.diagnose.suspects.catalogue.faults import CATALOGUE, inject
from workbench.show.report.run_reports import provenance_table

pytestmark = pytest.mark.slow

FAULTS = [fault for fault in CATALOGUE if fault.name in ("uncond-keeps-mu", "cfg-off", "last-slope")]


@pytest.fixture(scope="module")
def traces(pipe):
    """A healthy run, and a run with a fault."""
    utt = pipe.prepare("Hello there.", "data/prompts/kumo_0.flac")
    options = pipe.checkpoint.options.but(n_timesteps=3, seed=7)
    right = pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
    return right, inject(pipe, right, FAULTS[:1])


def evidence(page):
    return json.loads(re.search(r'<script type="application/json" id="evidence">(.*?)</script>', page)[1])


def test_report_of_two_runs_names_cause_and_suspect(pipe, traces):
    report = wb.comparison_report(*traces, pipe, ("ours", "theirs"), FAULTS)
    wrong = FAULTS[0]
    assert wrong.name in report.lead and "first cause" in report.lead
    titles = [section.title for section in report.sections]
    assert titles[:3] == ["Sound", "Findings: ours", "Findings: theirs"]
    assert titles[3:5] == ["Where they part", "Suspects"] and "Mel difference" in titles
    assert titles[-1] == "Where they come from" and report.state == "bad"
    page = report.html()
    numbers = evidence(page)
    assert numbers["suspects"][0]["suspect"] == wrong.name
    assert numbers["where-they-part"][0]["field"] == "in/text_token"
    assert "data:audio/flac" in page and len(page) < 6e6
    assert "All " in page and "<details>" in page
    assert re.search(f'<td class="long"[^>]*>{re.escape(wrong.cause)}</td>', page)


def test_report_of_equal_runs_has_no_suspects(pipe, traces):
    report = wb.comparison_report(traces[0], traces[0], pipe)
    assert report.lead.startswith("MATCH") and "Suspects" not in [s.title for s in report.sections]
    assert report.state == "good"


def test_run_report_lists_omitted_figures(traces):
    trace = wb.Trace({name: traces[0][name] for name in ("flow/mel", "hift/wav")}, {"sample_rate": 24000})
    report = wb.run_report(trace, "theirs")
    titles = [section.title for section in report.sections]
    assert {"Sound", "Findings", "Waveform", "Mel"} < set(titles) and "F0" not in titles
    assert titles[-2:] == ["Not shown, and why", "Where it comes from"]
    assert "hift/f0" in report.sections[-2].rendered.text


def test_report_of_a_fast_run_states_its_distance_from_eager(pipe, traces):
    right, _ = traces
    assert "omputed" not in wb.run_report(right, pipe=pipe).lead
    utt = pipe.prepare("Hello there.", "data/prompts/kumo_0.flac")
    options = pipe.checkpoint.options.but(n_timesteps=3, seed=7, compute="fast")
    fast = pipe.synthesise(utt, options=options)
    apart = own_deviation(pipe, fast)
    assert 1e-3 < apart["mel_l1"] < 0.1 and apart["snr_db"] > 40
    assert f"differs by {apart['mel_l1']:.2g} nat" in wb.run_report(fast, pipe=pipe).lead
    assert "Give the voice" in wb.run_report(fast).lead
    mel = wb.Trace({"flow/mel": fast["flow/mel"]}, fast.attrs)
    assert "is unknown" in wb.run_report(mel, pipe=pipe).lead


def test_a_report_states_the_formats_of_quantised_weights(pipe, traces):
    right, _ = traces
    weights = {"hift.resblocks": "int8"}
    low = pipe.replay(right, "hift", pipe.checkpoint.options.but(seed=7, weights=weights))
    sentence = f"Weights of hift: {low.attrs['quantised']['hift']}."
    assert "int8:channel" in sentence and sentence in wb.run_report(low).lead
    assert f"candidate: {sentence}" in wb.comparison_report(right, low, catalogue=()).lead
    assert "Weights of" not in wb.run_report(right).lead


def test_each_finding_has_an_anchor_and_a_copy_button(traces):
    wav = traces[0].wav.clone()
    wav[6000:6010] = float("nan")
    wav[9000] = 0.9
    data = {**traces[0].data, "hift/wav": wav}
    report = wb.run_report(wb.Trace(data, traces[0].attrs))
    found = wb.find_glitches(wb.Trace(data, traces[0].attrs))
    page = report.html()
    assert len(found) and all(f'id="findings-{i + 1}"' in page for i in range(len(found)))
    assert page.count('aria-label="Copy finding ') == len(found)
    assert f"at {found[0].start:.3f} to" in page and evidence(page)["findings"][0]["kind"] == found[0].kind


def test_hostile_text_is_escaped(traces):
    hostile = "</script><script>alert(1)</script>"
    attrs = traces[0].attrs | {"text": hostile, "source": hostile, "tag": hostile}
    page = wb.run_report(wb.Trace(traces[0].data, attrs), hostile).html()
    assert "<script>alert" not in page


def test_reports_are_written_from_the_shell(traces, tmp_path, capsys):
    a, b = (trace.save(tmp_path / f"{name}.trace") for name, trace in zip("ab", traces, strict=True))
    assert main(["report", str(a), "-o", str(tmp_path / "a.html")]) == 0
    assert main(["report", str(a), str(b), "-o", str(tmp_path / "ab.html")]) == 0
    assert "a.html: " in capsys.readouterr().out
    assert "b.trace beside a.trace" in (tmp_path / "ab.html").read_text()
    assert main(["report", str(tmp_path / "none.trace"), "-o", str(tmp_path / "none.html")]) == 2
    assert not (tmp_path / "none.html").exists() and torch.equal(wb.Trace.load(a).wav, traces[0].wav)


def test_provenance_has_rounded_seconds_and_not_the_precision_of_each_printed_number(traces, tmp_path):
    (tmp_path / "a.log").write_text("step 0: x min=-4.1, max=4.2")
    log = wb.open(tmp_path / "a.log")
    assert "half_units" in log.attrs
    run = wb.Trace(traces[0].data, traces[0].attrs | {"timings": {"flow": 1.23456789}})
    table = provenance_table({"run": run, "log": log})
    assert table.loc["timings.flow", "run"] == "1.23 s"
    assert not [name for name in table.index if "half_units" in name]
