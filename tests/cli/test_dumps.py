"""The verbs that take traces when they are given dumps and logs, with a mapping and without."""

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

import workbench as wb
from workbench.cli import main


@pytest.fixture
def mine(tmp_path):
    """The path of a trace with a mel, a waveform and speech tokens."""
    time = torch.arange(24_000) / 24_000
    fields = {
        "lm/speech_token": torch.arange(25),
        "flow/mel": torch.linspace(-9, 0, 80)[:, None].repeat(1, 50),
        "hift/wav": 0.3 * torch.sin(2 * torch.pi * 150 * time),
    }
    return str(wb.Trace(fields, {"sample_rate": 24_000}).save(tmp_path / "mine.trace"))


def dumped(folder, kind, trace):
    """Write a dump of a trace and return its path."""
    arrays = {name.replace("/", "."): value for name, value in trace.items()}
    if kind == "folder":
        for name, value in arrays.items():
            np.save(folder / f"{name}.npy", value.numpy())
        return folder
    path = folder / f"dump.{kind}"
    if kind == "safetensors":
        save_file({name: value.clone() for name, value in arrays.items()}, path)
    elif kind == "npz":
        np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    elif kind == "pt":
        torch.save({"flow": {"mel": arrays["flow.mel"]}, "hift": {"wav": arrays["hift.wav"]}}, path)
    elif kind == "pth":
        torch.save([{"flow.mel": arrays["flow.mel"]}, {"hift.wav": arrays["hift.wav"]}], path)
    elif kind == "gguf":
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(path, "reference")
        writer.add_tensor("flow.mel", arrays["flow.mel"].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    elif kind == "npy":
        path = folder / "mel.npy"
        np.save(path, arrays["flow.mel"].numpy())
    elif kind == "f32":
        path = folder / "mel_80x50.f32"
        arrays["flow.mel"].numpy().tofile(path)
    elif kind == "trace":
        trace.save(path)
    elif kind == "log":
        path.write_text(f"mel min={arrays['flow.mel'].min():.4f} max={arrays['flow.mel'].max():.4f}\n")
    return path


@pytest.mark.parametrize(
    "kind", ["trace", "safetensors", "npz", "npy", "folder", "pt", "pth", "f32", "gguf", "log"]
)
def test_a_trace_is_compared_with_every_kind_of_thing(tmp_path, mine, kind, capsys):
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = dumped(folder, kind, wb.Trace.load(mine))
    assert main(["compare", mine, str(path), "--brief"]) == 0
    out = capsys.readouterr().out
    assert "DIVERGED" not in out and out.startswith(("MATCH", "MISSING"))
    assert kind in ("trace", "log") or "was read by" in out


def test_a_trace_is_compared_with_a_sound(tmp_path, mine, capsys):
    path = tmp_path / "theirs.wav"
    soundfile.write(path, wb.Trace.load(mine).wav.numpy(), 24_000)
    assert main(["compare", mine, str(path), "--brief"]) == 0
    assert "its waveform (hift/wav) alone is compared" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mapping_is_proposed_written_and_used(tmp_path, mine, capsys):
    trace = wb.Trace.load(mine)
    np.savez(tmp_path / "dump.npz", their_mel=trace["flow/mel"].numpy().T, their_audio=trace.wav.numpy())
    path, mapping = str(tmp_path / "dump.npz"), str(tmp_path / "mine.toml")
    assert main(["compare", mine, path]) == 2
    assert "`workbench mapping dump.npz` proposes one" in capsys.readouterr().err
    assert main(["mapping", path]) == 0
    assert '[fields."hift/wav"]' in capsys.readouterr().out
    assert main(["mapping", path, "-o", mapping]) == 0
    assert main(["mapping", path, "-o", mapping]) == 2
    assert "mine.toml exists; expected a new file" in capsys.readouterr().err
    assert main(["compare", mine, path, "--mapping", mapping, "--brief"]) == 0
    assert capsys.readouterr().out.startswith("MISSING")
    assert main(["glitches", path, "--mapping", mapping]) == 0
    assert "dump.npz: " in capsys.readouterr().out
    assert main(["report", path, "--mapping", mapping, "-o", str(tmp_path / "page.html")]) == 0


def test_two_dumps_take_two_mappings(tmp_path, capsys):
    rule = '[fields."flow/mel"]\nname = "{}"\naxes = ["mel", "target_frame"]\n'
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **{name: np.ones((80, 3), "f4")})
        (tmp_path / f"{name}.toml").write_text(rule.format(name))
    paths = [str(tmp_path / f"{name}.npz") for name in "ab"]
    both = [option for name in "ab" for option in ("--mapping", str(tmp_path / f"{name}.toml"))]
    assert main(["compare", *paths, *both]) == 0
    assert capsys.readouterr().out.startswith("MATCH")
    assert main(["compare", *paths, *both[:2]]) == 2
    assert "no tensor of b.npz is in a.toml" in capsys.readouterr().err


def test_a_mapping_for_no_dump_is_refused(mine, tmp_path, capsys):
    assert main(["compare", mine, mine, "--mapping", "any.toml"]) == 2
    assert "expected the dump that it describes" in capsys.readouterr().err


def test_the_mapping_that_was_taken_is_told_beside_findings(tmp_path, mine, capsys):
    path = dumped(tmp_path, "npz", wb.Trace.load(mine))
    assert main(["glitches", str(path)]) == 0
    assert "dump.npz was read by the names of the schema" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [["compare", "none.npz"], ["report"], ["diagnose"], ["glitches"], ["mapping"]]
)
def test_a_missing_dump_is_told_in_one_line(verb, tmp_path, capsys):
    assert main([*verb, str(tmp_path / "none.npz")]) == 2
    err = capsys.readouterr().err
    assert "none.npz does not exist" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "line",
    ["compare mine.trace {}", "glitches {}", "report {}", "inspect {}", "speak hello --voice {}", "app {}"],
)
@pytest.mark.parametrize("address", ["https://example.com/theirs.wav", "s3://bucket/theirs.npz"])
def test_an_address_is_not_opened_and_the_error_says_what_to_do(
    tmp_path, monkeypatch, capsys, recorded, line, address
):
    monkeypatch.chdir(tmp_path)
    recorded.save("mine.trace")
    assert main(line.format(address).split()) == 2
    assert "An address is not opened: download the file" in capsys.readouterr().err
