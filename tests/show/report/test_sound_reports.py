"""Reports about sounds: what stands on the page for two sounds, for sounds that cannot be aligned, and for one."""

import numpy as np
import pytest

from tests.diagnose.sounds.common import noisy, speech
from workbench.show.report.sound_reports import one_sound_report, sound_report

pytestmark = pytest.mark.slow


def titles(report):
    return [section.title for section in report.sections]


def test_report_of_two_sounds_begins_with_the_verdict_and_the_player():
    wav = speech("nezumi_0", seconds=1.5)
    report = sound_report(wav, noisy(wav, 15), ("mine", "theirs"), 24_000)
    assert report.lead.startswith("DIVERGED") and "cannot tell which fault it was" in report.lead
    assert titles(report)[:3] == ["Sound", "Findings: mine", "Findings: theirs"] and report.state == "bad"
    assert titles(report)[3:5] == ["What differs", "Difference of the aligned mels"]
    page = report.html()
    assert "theirs beside mine" in page and "noise floor" in page


def test_report_of_sounds_that_cannot_be_compared_has_no_differences():
    report = sound_report(speech("nezumi_0"), np.zeros(24_000), sample_rate=24_000)
    assert report.lead.startswith("NOT COMPARABLE: the candidate is silent") and report.state == "open"
    assert "By time" not in titles(report) and "Each sound alone" in titles(report)


def test_report_of_one_sound_names_no_fault():
    report = one_sound_report(speech("kumo_1", seconds=1.5), 24_000)
    assert titles(report) == ["Sound", "Findings", "Properties"]
    assert "No fault can be named from one sound" in report.lead


def test_what_sounds_wrong_in_either_of_two_sounds_stands_in_the_lead():
    wav = speech("nezumi_0", seconds=1.5)
    clicked = wav.copy()
    clicked[12_000] += 0.9
    assert "theirs: 1 finding in 1.50 s: click" in sound_report(wav, clicked, ("mine", "theirs"), 24_000).lead
