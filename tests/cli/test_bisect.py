"""`workbench bisect`: what it asks for, what it writes, and its exit codes."""

import json

import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from workbench.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def paths(tmp_path):
    """The paths of a run without taps, and of a dump with two of them."""
    trace = wb.Trace({"flow/mel": torch.linspace(-8, 0, 80)[:, None].repeat(1, 9)}, {"text": "one"})
    draw = torch.Generator().manual_seed(0)
    dump = {"flow.0.time_embed": torch.randn(2, 256, generator=draw)}
    for name in ("input_embed", "transformer_blocks.0"):
        dump[f"flow.0.{name}"] = torch.randn(2, 9, 256, generator=draw)
    save_file(dump, tmp_path / "taps.safetensors")
    return str(trace.save(tmp_path / "a.trace")), str(tmp_path / "taps.safetensors")


def test_the_code_for_the_next_taps_is_written_and_its_dump_is_read(paths, tmp_path, capsys):
    trace, dump = paths
    assert main(["bisect", "-", trace, "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "no taps are recorded" in out and "record next: time_embed, input_embed" in out
    assert "def record_taps" in (tmp_path / "record_taps.py").read_text()
    assert "trace.put" in (tmp_path / "record_taps.rs").read_text()
    # The first block is noise; what comes before it cannot be checked without the inputs.
    assert main(["bisect", trace, trace, "--taps", dump, "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["first"] == found["block"] == "transformer_blocks.0"
    assert found["next_taps"][0] == "transformer_blocks.0.attn_norm.linear"
    assert [row["verdict"] for row in found["rows"]] == ["not checked", "not checked", "adds an error"]
    assert main(["bisect", trace, trace, "--taps", dump]) == 1
    assert "- not checked: flow/0/time_embed: input.t was not recorded" in capsys.readouterr().out


def test_a_mapping_without_a_dump_is_refused(paths, capsys):
    trace, _ = paths
    assert main(["bisect", trace, trace, "--mapping", "taps.toml"]) == 2
    assert "expected the dump that it describes" in capsys.readouterr().err
