"""Sound files of every kind are read in blocks, or refused in words: damaged, endless, headerless, unfinished."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.paths import ASSETS
from tests.profiles import examples
from tests.speech.frontend.test_audio import tone
from workbench.errors import WorkbenchError
from workbench.speech.frontend import audio_files


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_stereo_files_of_any_format_are_read(tmp_path, ending):
    left = tone(1.0)
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, torch.stack([left, torch.zeros_like(left)], 1).numpy(), 24_000)
    wav, rate = audio_files.read_wav(path)
    assert rate == 24_000 and wav.dtype == torch.float32
    assert wav.abs().max().item() == pytest.approx(0.15, abs=0.02)
    wav, rate = audio_files.read_wav(path, 16_000)
    assert rate == 16_000 and abs(len(wav) - 16_000) < 2_000


def save(wav, format="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, 24_000, format=format, subtype=subtype)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 2)).astype(np.float32)
NAN = np.where(np.arange(4000)[:, None] == 7, np.float32("nan"), np.float32(0.1))
BAD_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no sound", "could not be read as audio"),
    "header alone": (save(NOISE)[:30], "could not be read as audio|no samples"),
    "no samples": (save(NOISE[:0]), "no samples"),
    "nan": (save(NAN, subtype="FLOAT"), "NaN or infinite"),
    "integers as floats": (save(NOISE * 60_000, subtype="FLOAT"), "divide by full scale"),
    "cut flac": (save(NOISE, "FLAC")[:3000], "could not be read as audio|no samples"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=message) as caught:
        audio_files.read_wav(path)
    assert "bad.wav" in str(caught.value) and "expected" in str(caught.value)


def test_bad_paths_are_named(tmp_path):
    with pytest.raises(WorkbenchError, match="does not exist"):
        audio_files.read_wav(tmp_path / "none.wav")
    with pytest.raises(WorkbenchError, match="is a folder"):
        audio_files.read_wav(tmp_path)
    with pytest.raises(WorkbenchError):
        audio_files.read_wav("a\0b.wav")
    with pytest.raises(WorkbenchError):
        audio_files.read_wav("x" * 5000)
    (tmp_path / "a.raw").write_bytes(b"1234")
    with pytest.raises(WorkbenchError, match="no header that states its rate"):
        audio_files.read_wav(tmp_path / "a.raw")


REAL = [
    save(NOISE),
    save(NOISE, subtype="FLOAT"),
    save(NOISE, "FLAC"),
    save(NOISE, "OGG"),
    save(NOISE, "AIFF"),
]


@st.composite
def broken_files(draw):
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(st.binary(max_size=400))
    content = bytearray(draw(st.sampled_from(REAL)))
    for _ in range(draw(st.integers(0, 6))):
        where = draw(st.integers(0, 120) | st.integers(0, len(content) - 1))
        content[where] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


@settings(max_examples=examples(1000), deadline=None, suppress_health_check=list(HealthCheck))
@given(broken_files(), st.sampled_from([None, 24_000, 16_000]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, rate):
    path = tmp_path_factory.getbasetemp() / "fuzz.wav"
    path.write_bytes(content)
    try:
        wav, found = audio_files.read_wav(path, rate)
    except WorkbenchError:
        return
    assert wav.ndim == 1 and len(wav) and wav.isfinite().all() and found == (rate or found)


# ---- headers that were never completed


def unfinished(content, riff, data):
    """A WAV whose header states other lengths than it has, as a writer to a pipe leaves it."""
    at = content.index(b"data")
    return (
        content[:4]
        + struct.pack("<I", riff)
        + content[8 : at + 4]
        + struct.pack("<I", data)
        + content[at + 8 :]
    )


@pytest.mark.parametrize(
    "subtype", ["PCM_16", "PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
@pytest.mark.parametrize(
    ("riff", "data"), [(0, 0), (36, 0), (0xFFFFFFFF, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0, 1 << 31)]
)
def test_a_wav_of_length_0_or_of_any_length_is_read_to_its_end(tmp_path, subtype, riff, data):
    path = tmp_path / "piped.wav"
    whole = save(NOISE, subtype=subtype)
    path.write_bytes(whole)
    expected = audio_files.read_samples(path)
    path.write_bytes(unfinished(whole, riff, data))
    found = audio_files.read_samples(path)
    assert torch.equal(found.wav[:2000], expected.wav) and found[1:] == (24_000, 2, subtype)
    assert len(found.wav) - 2000 in range(100)  # chunks behind the samples count as samples then


def test_an_extensible_wav_of_length_0_is_read(tmp_path):
    path = tmp_path / "piped.wav"
    path.write_bytes(unfinished(save(NOISE, "WAVEX", "PCM_24"), 0, 0))
    assert len(audio_files.read_samples(path).wav) == 2000


def test_a_completed_wav_without_samples_is_empty_whatever_stands_behind(tmp_path):
    path = tmp_path / "empty.wav"
    head = save(NOISE[:0])
    tail = b"LIST" + struct.pack("<I", 4) + b"INFO"
    path.write_bytes(unfinished(head + tail, len(head + tail) - 8, 0))
    with pytest.raises(WorkbenchError, match="holds no samples in"):
        audio_files.read_samples(path)


def test_a_header_alone_is_told_in_words(tmp_path):
    path = tmp_path / "headonly.wav"
    path.write_bytes(save(NOISE)[:44])
    with pytest.raises(WorkbenchError, match="holds no samples in 44 bytes"):
        audio_files.read_samples(path)


# ---- samples without a header


@pytest.mark.parametrize(
    ("suffix", "dtype", "full_scale"),
    [
        (".pcm", "<i2", 2**15),
        (".raw", "<i2", 2**15),
        (".s16be", ">i2", 2**15),
        (".s32le", "<i4", 2**31),
        (".f32", "<f4", 1),
        (".f64", "<f8", 1),
    ],
)
def test_samples_without_a_header_are_read_at_the_given_rate(tmp_path, suffix, dtype, full_scale):
    path = tmp_path / f"a{suffix}"
    wav = NOISE[:, 0]
    (wav.astype(np.float64) * full_scale).astype(dtype).tofile(path)
    found = audio_files.read_samples(path, 16_000)
    assert found.rate == 16_000 and found.channels == 1
    torch.testing.assert_close(found.wav, torch.from_numpy(wav.copy()), atol=1e-4, rtol=0)
    with pytest.raises(WorkbenchError, match="no header that states its rate"):
        audio_files.read_samples(path)


def test_float_samples_that_are_called_integers_are_refused(tmp_path):
    NOISE.tofile(tmp_path / "a.pcm")
    with pytest.raises(WorkbenchError, match=r"name it \.f32"):
        audio_files.read_samples(tmp_path / "a.pcm", 24_000)


def test_a_part_of_a_sample_at_the_end_is_left_out(tmp_path):
    (tmp_path / "a.pcm").write_bytes(b"\0\x40" * 100 + b"\1")
    assert audio_files.read_samples(tmp_path / "a.pcm", 24_000).wav.tolist() == [0.5] * 100
    (tmp_path / "a.pcm").write_bytes(b"\1")
    with pytest.raises(WorkbenchError, match="holds no sample"):
        audio_files.read_samples(tmp_path / "a.pcm", 24_000)


# ---- what phones and browsers record

CONTAINERS = sorted((ASSETS / "prompts").glob("tone.*"))


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_recordings_of_phones_and_browsers_are_read_where_pyav_is_there(path):
    pytest.importorskip("av")
    found = audio_files.read_samples(path)
    spectrum = np.abs(np.fft.rfft(found.wav.numpy()))
    assert abs(spectrum.argmax() * found.rate / len(found.wav) - 220) < 1
    assert 1.0 <= len(found.wav) / found.rate < 1.1
    with pytest.raises(WorkbenchError, match="longer than"):
        audio_files.read_samples(path, max_seconds=0.5)


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_without_a_decoder_the_sentence_says_what_to_install(path, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(audio_files, "import_module", missing)
    other = tmp_path / "renamed.wav"  # it is the content that decides
    other.write_bytes(path.read_bytes())
    for one in (path, other):
        with pytest.raises(WorkbenchError, match=r"needs PyAV or torchcodec.*pip install av") as caught:
            audio_files.read_samples(one)
        assert one.name in str(caught.value)


# ---- memory


def test_a_long_file_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(40 * 8000, np.int16), 8000)
    read = []
    real = soundfile.SoundFile.read

    def counted(self, *args, **kwargs):
        block = real(self, *args, **kwargs)
        read.append(block.size)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    monkeypatch.setattr(audio_files, "BLOCK_SAMPLES", 8000)
    with pytest.raises(WorkbenchError, match="longer than 30 s"):
        audio_files.read_samples(path, max_seconds=30)
    assert sum(read) == 31 * 8000
    monkeypatch.setattr(audio_files, "MAX_SAMPLES", 16_000)
    with pytest.raises(WorkbenchError, match="million samples at 8000 Hz"):
        audio_files.read_samples(path)


def test_many_channels_are_read_in_small_blocks(tmp_path, monkeypatch):
    path = tmp_path / "many.wav"
    soundfile.write(path, np.zeros((100, 64), np.float32), 24_000)
    monkeypatch.setattr(audio_files, "BLOCK_SAMPLES", 640)
    with soundfile.SoundFile(path) as file:
        assert [block.shape for block in audio_files._blocks(file)] == [(10, 64)] * 10
