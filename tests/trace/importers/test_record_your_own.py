"""The page notebooks/record-your-own.md: its table is the schema, and its examples work."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.comparison import VERDICTS
from workbench.trace.importers.dumps.mapping import read_foreign
from workbench.trace.importers.logs.logs import read_log
from workbench.trace.schema import FIELDS, REGIONS, STATS, VERSION
from workbench.trace.trace import KEY, Trace

PAGE = Path("notebooks/record-your-own.md").read_text(encoding="utf-8")
WRITER = Path("data/foreign/trace.rs")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_table_of_fields_equals_the_schema():
    rows = ["| field | axes | unit | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {', '.join(field.dims)} | {field.unit} | {field.meaning} |"
        for name, field in FIELDS.items()
    ]
    shown = PAGE.split("by tests/trace/importers/test_record_your_own.py -->\n")[1].split(
        "\n<!-- end of fields -->"
    )[0]
    assert shown == "\n".join(rows)
    assert ", ".join(STATS) in PAGE and ", ".join(REGIONS) in PAGE


def test_every_verdict_is_explained():
    table = PAGE.split("| verdict | means |")[1]
    assert all(re.search(rf"\b{verdict}\b", table) for verdict in VERDICTS)


def test_the_files_it_names_exist():
    for name in re.findall(r"`((?:data|workbench|notebooks)/[\w/.-]+)`", PAGE):
        assert Path(name).exists(), name
    assert KEY in PAGE and "(notebooks/record-your-own.md)" in Path("README.md").read_text(encoding="utf-8")


def test_the_example_of_raw_files_can_be_read(tmp_path):
    (mapping,) = (text for text in blocks("toml") if ".f32" in text)
    (tmp_path / "mine.toml").write_text(mapping)
    mel, x = torch.randn(80, 6), torch.randn(3, 80, 9)
    mel.numpy().tofile(tmp_path / "mel.f32")
    np.zeros(6 * 480, "<f4").tofile(tmp_path / "wav.f32")
    for k in range(3):
        x[k].T.contiguous().numpy().tofile(tmp_path / f"x_{k}.f32")
    trace = read_foreign(tmp_path, tmp_path / "mine.toml")
    assert torch.equal(trace["flow/mel"], mel) and torch.equal(trace["flow/x"], x) and len(trace.wav) == 2880


def test_the_example_of_a_mapping_can_be_read(tmp_path):
    (mapping,) = (text for text in blocks("toml") if "batch" in text)
    (tmp_path / "mine.toml").write_text(mapping)
    steps = {f"step{k:03d}_x": np.full((1, 80, 4), k, "f4") for k in range(2)}
    steps |= {
        f"step{k:03d}_v": np.stack([np.full((80, 4), s * (k + 1), "f4") for s in (1, -1)]) for k in range(2)
    }
    np.savez(tmp_path / "dump.npz", noise=np.full((1, 80, 4), -1, "f4"), **steps)
    trace = wb.open(tmp_path / "dump.npz", tmp_path / "mine.toml")
    assert trace["flow/x"][:, 0, 0].tolist() == [-1, 0, 1]
    assert trace["flow/velocity_uncond"][:, 0, 0].tolist() == [-1, -2]


def test_the_example_of_a_log_can_be_read(tmp_path):
    (lines,) = (text for text in blocks("text") if "ODE" in text)
    (tmp_path / "server.log").write_text(lines)
    fields = {name for run in read_log(tmp_path / "server.log").runs for name in run}
    assert {
        "flow/x.stats",
        "flow/velocity_cond.stats",
        "flow/velocity_uncond.stats",
        "flow/mu.stats",
    } <= fields


def test_the_rust_writer_has_our_key_and_version():
    text = WRITER.read_text(encoding="utf-8")
    assert KEY in text and f'"version":{VERSION},' in text


@pytest.mark.process
@pytest.mark.skipif(shutil.which("rustc") is None, reason="no Rust compiler")
def test_a_trace_from_the_rust_writer_loads(tmp_path):
    calls = [
        "let mut run = trace::Trace::default();",
        'for k in 0..3 { run.push("flow/x", &[80, 5], &vec![k as f32 + 0.5; 400]); }',
        'for k in 0..3 { run.push("flow/t", &[], &[k as f32 / 2.0]); }',
        'run.put("flow/mel", &[80, 3], &(0..240).map(|i| i as f32).collect::<Vec<_>>());',
        'run.put_ids("lm/speech_token", &[7, 0, 6560]);',
        'run.save(std::path::Path::new("native.trace"), "say \\"it\\"\\n\\u{e9} \\\\ now", 2).unwrap();',
    ]
    (tmp_path / "main.rs").write_text("mod trace;\nfn main() {\n" + "\n".join(calls) + "\n}\n")
    shutil.copy(WRITER, tmp_path / "trace.rs")
    build = ["rustc", "--edition", "2021", "-D", "warnings", "main.rs", "-o", "main"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([tmp_path / "main"], cwd=tmp_path, check=True)
    trace = Trace.load(tmp_path / "native.trace")
    assert trace.attrs == {
        "text": 'say "it"\né \\ now',
        "sample_rate": 24000,
        "timings": {},
        "prompt_frames": 2,
    }
    data = {
        "lm/speech_token": torch.tensor([7, 0, 6560]),
        "flow/t": torch.tensor([0.0, 0.5, 1.0]),
        "flow/x": (torch.arange(3) + 0.5)[:, None, None].expand(3, 80, 5),
        "flow/mel": torch.arange(240.0).view(80, 3),
    }
    assert compare(Trace(data, trace.attrs), trace).verdict == "MATCH"
    assert {p.name for p in tmp_path.iterdir()} == {"main", "main.rs", "trace.rs", "native.trace"}
