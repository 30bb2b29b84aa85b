"""The payload of the player (sound at its own level, warnings, mel, findings), its static HTML and its widget."""

import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets import VBox
from PIL import Image

import workbench as wb
from workbench import _show_players
from workbench.show.player.page import MODULE
from workbench.show.player.payload import player_data
from workbench.show.widgets.display import trace_html
from workbench.speech.frontend.audio import write_wav
from workbench.trace.trace import Trace

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def tone(seconds=1.0, level=0.5, hz=440.0, rate=24_000, **more):
    wav = level * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * rate)) / rate)
    return Trace({"hift/wav": wav, **more}, {"sample_rate": rate, "text": f"{hz:g} Hz"})


def findings(*rows):
    return pd.DataFrame(rows, columns=["kind", "start", "end", "score"])


def decode_address(address):
    return io.BytesIO(base64.b64decode(address.split(",")[1]))


def payload_of(trace, **more):
    """The payload of a single trace."""
    (made,) = player_data([trace], **more)["traces"]
    return made


# ---- sound


def test_sound_equals_the_written_wav_file(tmp_path):
    trace = tone(level=0.031)
    write_wav(tmp_path / "a.wav", trace.wav, 24_000)
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    found, rate = soundfile.read(decode_address(payload_of(trace)["sound"]), dtype="int16")
    assert rate == 24_000
    assert np.array_equal(found, expected)


def test_levels_of_a_sine():
    made = payload_of(tone(level=0.5))
    assert made["peak_db"] == pytest.approx(-6.02, abs=0.01)
    assert made["rms_db"] == pytest.approx(-9.03, abs=0.01)
    assert (made["gain_db"], made["clipped"]) == (0, 0)


def test_clipped_and_nan_samples_give_warnings():
    trace = tone(level=0.5)
    trace.wav[:3] = torch.tensor([math.nan, 7.0, -math.inf])
    data = player_data([trace], names=["mine"])
    samples, _ = soundfile.read(decode_address(data["traces"][0]["sound"]), dtype="int16")
    assert samples[:3].tolist() == [0, 32767, -32768]
    assert data["traces"][0]["clipped"] == 2
    assert data["warnings"] == [
        "A · mine: NaN was set to 0 (1 of 24000 samples)",
        "A · mine: samples beyond ±1 were clipped (2 of 24000 samples, up to inf)",
    ]


def test_samples_at_the_vocoders_limit_count_as_clipped():
    wav = torch.zeros(1000)
    wav[:4] = torch.tensor([0.99, -0.99, 1.0, 0.9899])
    data = player_data([Trace({"hift/wav": wav}, {})])
    assert data["traces"][0]["clipped"] == 3
    assert data["warnings"] == []  # nothing is beyond full scale


@pytest.mark.parametrize("wav", [torch.zeros(24_000), torch.full((5,), math.nan), torch.ones(1) * 1e-30])
def test_silent_and_very_short_sound_has_no_loudness(wav):
    data = player_data([Trace({"hift/wav": wav}, {}), tone()], match_levels=True)
    assert data["traces"][0]["lufs"] is None
    assert [trace["gain_db"] for trace in data["traces"]] == [0, 0]
    json.dumps(data, allow_nan=False)


def test_levels_are_matched_on_request_by_turning_down():
    loud, low = tone(level=0.5), tone(level=0.125)
    assert [trace["gain_db"] for trace in player_data([loud, low])["traces"]] == [0, 0]
    matched = player_data([loud, low], match_levels=True)["traces"]
    assert matched[0]["gain_db"] == pytest.approx(-12.04, abs=0.02)
    assert matched[1]["gain_db"] == 0
    assert (
        matched[0]["sound"] == payload_of(loud)["sound"]
    )  # the gain is the page's; the sound stays as it is


def test_long_sound_is_cut_with_a_warning():
    long = tone(seconds=2.5, **{"hift/f0": torch.full((125,), 100.0), "flow/mel": torch.randn(80, 125)})
    data = player_data(
        [long], seconds=1.0, findings=findings(("click", 0.5, 0.6, 1.0), ("click", 2.0, 2.1, 1.0))
    )
    (made,) = data["traces"]
    assert soundfile.info(decode_address(made["sound"])).frames == 24_000
    assert len(made["f0"]) == Image.open(decode_address(made["mel"])).width == 50
    assert len(made["findings"]) == 1
    assert "the first 1 of 2.5 s" in data["warnings"][0]


# ---- mel and f0


def test_recorded_mel_is_drawn_with_low_frequencies_at_the_bottom():
    mel = torch.full((80, 7), -5.0)
    mel[0, 3] = 2.0
    made = payload_of(tone(**{"flow/mel": mel}))
    picture = np.asarray(Image.open(decode_address(made["mel"])).convert("L")).astype(int)
    assert picture.shape == (80, 7)
    assert np.unravel_index(picture.argmax(), picture.shape) == (79, 3)
    assert made["mel_from"] == "flow/mel"


def test_mel_of_the_waveform_is_drawn_when_none_was_recorded():
    made = payload_of(tone(hz=1000, rate=16_000))
    picture = np.asarray(Image.open(decode_address(made["mel"])).convert("L")).astype(int)
    data = player_data([tone(hz=1000)])
    bin_of_1k = dict((text, index) for index, text in data["ticks"])["1 k"]
    assert picture.shape == (80, 50)
    assert abs(79 - picture[:, 25].argmax() - bin_of_1k) <= 1
    assert made["mel_from"] == "the waveform"


def test_all_mels_share_one_colour_range():
    a, b = (
        tone(**{"flow/mel": torch.linspace(low, high, 800).reshape(80, 10)})
        for low, high in ((-9, 0), (-4, 3))
    )
    assert player_data([a, b])["mel_range"] == [-9, 3]


def test_a_mel_below_the_quietest_does_not_wash_out_the_others():
    wild = tone(**{"flow/mel": torch.linspace(-40, 2, 800).reshape(80, 10)})
    assert player_data([wild, tone()])["mel_range"][0] == pytest.approx(math.log(1e-5))


@pytest.mark.parametrize("value", [math.nan, math.inf, 3.0, -40.0])
def test_a_mel_without_range_is_still_drawn(value):
    data = player_data([tone(**{"flow/mel": torch.full((80, 4), value)})])
    assert data["mel_range"][0] < data["mel_range"][1]
    json.dumps(data, allow_nan=False)


def test_f0_is_finite():
    f0 = torch.tensor([0.0, 123.456, math.nan, math.inf])
    assert payload_of(tone(**{"hift/f0": f0}))["f0"] == [0, 123.5, 0, 0]


def test_f0_that_the_vocoder_takes_as_unvoiced_is_zero():
    f0 = torch.tensor([0.3, 1.0, 10.0, 10.1, 200.0])
    assert payload_of(tone(**{"hift/f0": f0}))["f0"] == [0, 0, 0, 10.1, 200]


def test_tokens_and_text_are_included():
    made = payload_of(tone(**{"lm/speech_token": torch.tensor([5, 28, 7])}))
    assert (made["tokens"], made["text"]) == ([5, 28, 7], "440 Hz")


def test_equal_waveforms_have_one_name():
    assert payload_of(tone())["id"] == payload_of(tone())["id"] != payload_of(tone(hz=441))["id"]


def test_a_rate_that_browsers_cannot_decode_is_resampled_with_a_warning():
    data = player_data([tone(rate=1000, hz=100)])
    assert data["traces"][0]["rate"] == 3000
    assert "browsers cannot play 1000 Hz" in data["warnings"][0]


# ---- findings, names


class WithTable:
    def to_frame(self):
        return findings(("gap", 0.5, 0.7, math.nan), ("click", 0.1, 0.11, 7.25))


def test_findings_come_from_tables_and_objects_with_tables():
    expected = ["click 0.10 s (7.25)", "gap 0.50 s"]
    for found in (
        WithTable(),
        WithTable().to_frame(),
        WithTable().to_frame().set_index("start"),
        [WithTable()],
    ):
        assert [row["text"] for row in payload_of(tone(), findings=found)["findings"]] == expected


def test_too_many_findings_are_cut_with_a_warning():
    data = player_data([tone()], findings=findings(*[("click", i / 1000, i / 1000, 1.0) for i in range(700)]))
    assert len(data["traces"][0]["findings"]) == 500
    assert "the first 500 of 700 findings" in data["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "0 traces"),
        (([tone()] * 27,), "27 traces"),
        (([tone()], ["a", "b"]), "2 names for 1 traces"),
        (([tone()], None, [None, None]), "2 findings for 1 traces"),
        (([tone()], None, pd.DataFrame({"time": [1.0]})), "expected kind, start, end, score"),
        (([Trace({}, {})],), "no waveform"),
        (([tone()], None, None, False, 0), "more than 0"),
    ],
)
def test_arguments_that_do_not_fit_raise(arguments, words):
    with pytest.raises(wb.WorkbenchError, match=words):
        player_data(*arguments)


# ---- the widget and its static twin


def test_files_traces_and_samples_play_side_by_side(tmp_path):
    write_wav(tmp_path / "theirs.wav", tone(rate=16_000).wav, 16_000)
    made = wb.player(
        tone(), tmp_path / "theirs.wav", tone().wav.numpy(), (tone().wav, 48_000), sample_rate=24_000
    )
    assert [trace["rate"] for trace in made.data["traces"]] == [24_000, 16_000, 24_000, 48_000]
    assert made.data["traces"][1]["name"].endswith("theirs.wav")
    for source, words in ((tmp_path / "none.wav", "does not exist"), (tone().wav, "sample_rate")):
        with pytest.raises(wb.WorkbenchError, match=words):
            wb.player(source)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_static_html_needs_no_other_file_and_escapes_names():
    trace, found = tone(), findings((HOSTILE, 0.1, 0.2, 1.0))
    trace.wav[0] = 9
    text = wb.player(trace, names=[HOSTILE], findings=found).static()
    tags = Tags(text).found
    assert [tag for tag, _ in tags] == ["div", "p", "figure", "figcaption", "img", "audio", "script"]
    assert all(attrs["src"].startswith("data:") for _, attrs in tags if "src" in attrs)
    assert "controls" in tags[-2][1]
    assert text.count("</script") == 1
    assert not re.search(r"https?://|@import|url\(", text)
    assert text.count(payload_of(trace)["sound"]) == 1


def test_module_is_valid_inside_a_script_element():
    assert "</script" not in MODULE and "<!--" not in MODULE
    assert not re.search(r"https?://|\bimport\b|eval\(", MODULE)


@pytest.mark.parametrize(("is_noise", "limit"), [(False, 2_000_000), (True, 2_200_000)])
def test_static_html_of_half_a_minute_stays_small(is_noise, limit):
    trace = tone(seconds=30, **{"hift/f0": torch.full((1500,), 123.4), "flow/mel": torch.randn(80, 1500)})
    speech, _ = soundfile.read(wb.data_path("prompts/kumo_1.flac"), dtype="float32")  # 5 s
    trace.wav.copy_(torch.rand(720_000) - 0.5 if is_noise else torch.tensor(speech).repeat(7)[:720_000])
    assert len(wb.player(trace).static()) <= limit  # noise cannot be compressed without loss


def test_cell_shows_the_static_html_and_opens_no_comm():
    player = wb.player(tone(), names=["one"])
    shown, _ = InteractiveShell().display_formatter.format(player)
    assert set(shown) == {"text/html", "text/plain"}
    assert shown["text/plain"] == repr(player) == "Player('one')"
    assert "<audio" in shown["text/html"]
    assert player.comm is None


def test_container_gets_the_live_widget():
    player = wb.player(tone())
    box = VBox([player])
    assert box.get_state("children") == {"children": [f"IPY_MODEL_{player.model_id}"]}
    assert player.comm is not None
    assert player.get_state(["_esm"])["_esm"] == MODULE
    player.close()


def test_widget_traits_are_validated():
    player = wb.player(tone(), tone())
    player.loop, player.position, player.choice = [0.25, 0.5], 0.3, -1
    for name, value in (("loop", [0.5, 0.2]), ("loop", [0.5]), ("choice", 2)):
        with pytest.raises(wb.WorkbenchError, match="expected"):
            setattr(player, name, value)
    assert (player.loop, player.position, player.choice) == ([0.25, 0.5], 0.3, -1)


def test_trace_in_a_cell_has_its_player():
    shell, trace = InteractiveShell(), tone()
    _show_players(shell)
    shown, _ = shell.display_formatter.format(trace)
    assert "<audio" in shown["text/html"]
    assert "hift/wav" in shown["text/html"]
    assert trace_html(Trace({"hift/f0": torch.ones(3)}, {})).startswith("<div><b>Trace")


@pytest.mark.slow
@pytest.mark.process
def test_import_stays_light():
    code = "import sys, workbench; print([m for m in ('anywidget', 'matplotlib', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
