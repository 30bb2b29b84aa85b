"""Files that once ended in a bare traceback, a hang or gigabytes: each is a result or one sentence, soon."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.fuzz.mutations import dump_bytes
from tests.paths import ASSETS, ROOT
from workbench.cli import main
from workbench.cli.common import options_of
from workbench.files import STALE, atomic_write
from workbench.speech.checkpoint import hyperyaml
from workbench.speech.checkpoint.config_yaml import config_from_yaml, options_from_yaml
from workbench.speech.checkpoint.files import replace_folder
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.checkpoint.weights import read_weights
from workbench.speech.frontend.onnx_session import open_session
from workbench.speech.frontend.text.reading import read_text
from workbench.speech.frontend.text.tokenizer import TextTokenizer

HOSTILE, DUMPS = ASSETS / "hostile", ASSETS / "dumps"
TINY_LLM = ROOT / "data" / "voices" / "tiny" / "CosyVoice-BlankEN" / "config.json"
MAX_SECONDS = 5  # of CPU time


@pytest.fixture(autouse=True)
def in_time():
    """No test here may take long, nor wait for what never comes."""
    started = time.process_time()
    timer = threading.Timer(60, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.cancel()
    assert time.process_time() - started < MAX_SECONDS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("foreign_20fffc.safetensors", "scale of flow/velocity_cond is a huge number"),
        ("foreign_25102c.safetensors", "step3_v1 is float8_e4m3fn"),
        ("foreign_81da30.pt", r"no tensor of foreign_81da30.pt is called 'step\{step\}_v1'"),
        ("foreign_830a1e.dir", r"no tensor of foreign_830a1e.dir is called 'step\{step\}_v2'"),
        ("foreign_84b53e.npz", "has the steps 1 to 4; write first = 1"),
        ("foreign_bc6070.dir", "'axes' stands at the top"),
    ],
)
def test_dumps_with_hostile_mappings_are_refused(name, words):
    path = next(path for path in (HOSTILE / name, DUMPS / name) if path.exists())
    with pytest.raises(wb.WorkbenchError, match=words):
        wb.open(path, HOSTILE / f"{path.stem}.toml")


def test_a_folder_of_raw_numbers_is_read():
    found = wb.open(HOSTILE / "foreign_7499bc.dir", HOSTILE / "foreign_7499bc.toml")
    assert len(found.to_frame()) > 0


@pytest.mark.parametrize("line", ["min=" + "1" * 8000 + "x", "range(" + "1" * 8000, "range" + " " * 8000])
def test_long_lines_of_a_log_take_no_time(tmp_path, line):
    (tmp_path / "slow.log").write_text(f"{line}\n" * 20)
    with pytest.raises(wb.WorkbenchError, match="none of 20 lines"):
        wb.read_log(tmp_path / "slow.log")


@pytest.mark.parametrize("name", ["log_394121.log", "log_4200bf.log"])
def test_logs_of_a_broken_port_are_read(name):
    assert len(wb.read_log(ASSETS / "logs" / name).runs) > 10


def test_nested_names_of_tensors_are_refused():
    with pytest.raises(wb.WorkbenchError, match=r"lognames_c0beb6.toml could not be read"):
        wb.read_log(ASSETS / "logs" / "log_394121.log", HOSTILE / "lognames_c0beb6.toml")


def test_a_model_with_weights_elsewhere_is_listed_and_not_opened(tmp_path):
    path = shutil.copy(HOSTILE / "onnx_25d0f3.onnx", tmp_path / "campplus.onnx")
    assert inspect_folder(tmp_path)["dtype"].tolist() != []
    with pytest.raises(wb.WorkbenchError, match="External data path validation failed"):
        open_session(path, torch.device("cpu"))


def test_a_broken_tokenizer_is_refused():
    with pytest.raises(wb.WorkbenchError, match="added_tokens_decoder is not id -> token"):
        TextTokenizer.load(HOSTILE / "tok_1b68b5.tok").encode("Hello.")


def test_numbers_to_the_base_60_are_text():
    tree = hyperyaml.read(HOSTILE / "yaml_9ee0de.yaml")
    assert config_from_yaml(tree, json.loads(TINY_LLM.read_text())) and options_from_yaml(tree)
    with pytest.raises(wb.WorkbenchError, match="has no 'feat_extractor'"):
        config_from_yaml(hyperyaml.read(HOSTILE / "yaml_sexfloat.yaml"), {})


def test_nested_options_are_refused():
    with pytest.raises(wb.WorkbenchError, match="expected one of cfg_rate"):
        wb.Options().but(**options_of((HOSTILE / "options_42ad7c.txt").read_text().splitlines()))


def test_a_text_of_many_numbers_is_read(pipe):
    assert read_text("1stM-DM-10.0000001" + "1,1," * 300, pipe.frontend.tokenizer, "workbench")


# ---- what is no file


def no_file(kind, path):
    """Put something that is no file at a path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nothing")
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        os.mkfifo(path)


KINDS = ("folder", "dangling", "loop", "fifo")


@pytest.mark.parametrize("kind", KINDS)
def test_a_dump_of_a_folder_may_be_no_file(tmp_path, kind):
    (tmp_path / "mel_80x5.f32").write_bytes(dump_bytes("f32", {"x": torch.ones(80, 5)}))
    no_file(kind, tmp_path / "x0.f32")
    for read in (wb.open, wb.propose_mapping):
        with pytest.raises(wb.WorkbenchError, match=r"x0.f32 is no file, or a link to none"):
            read(tmp_path)


@pytest.mark.parametrize(
    "suffix", [".trace", ".log", ".safetensors", ".gguf", ".npz", ".f32", ".wav", ".log#2"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_opened_may_be_no_file(tmp_path, suffix, kind):
    path = tmp_path / f"run{suffix}"
    no_file(kind, tmp_path / f"run{suffix.partition('#')[0]}")
    for read in (wb.open, wb.player, wb.find_glitches, wb.read_log, wb.propose_mapping):
        with pytest.raises(wb.WorkbenchError, match="run"):
            read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_voice_may_be_no_file(tmp_path, kind):
    voice = shutil.copytree(ROOT / "data" / "voices" / "tiny", tmp_path / "voice", symlinks=True)
    for name in ("llm.safetensors", "cosyvoice3.yaml", "CosyVoice-BlankEN/vocab.json", "campplus.onnx"):
        kept = (voice / name).rename(tmp_path / "kept")
        no_file(kind, voice / name)
        with pytest.raises(wb.WorkbenchError):
            wb.Pipeline(wb.Checkpoint.load(voice)).prompt(wb.data_path("prompts/kumo_0.flac"))
        shutil.rmtree(voice / name) if kind == "folder" else (voice / name).unlink()
        kept.rename(voice / name)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".npz", "a\0b", "\ud800", "x/" * 3000])
def test_a_name_that_no_file_can_have_is_told(tmp_path, pipe, name):
    path = f"{tmp_path}/{name}"
    readers = (
        *(
            wb.open,
            wb.player,
            wb.find_glitches,
            wb.read_log,
            wb.propose_mapping,
            inspect_folder,
            wb.check_prompt,
        ),
        *(wb.Checkpoint.load, lambda p: open_session(Path(p), torch.device("cpu")), pipe.prompt),
        *(wb.Trace({}, {}).save, pipe.checkpoint.save, lambda p: wb.Report("").save(p), wb.Trace.load),
    )
    for read in readers:
        with pytest.raises(wb.WorkbenchError):
            read(path)


# ---- headers that claim too much


def test_gguf_tensors_that_share_their_bytes_do_not_multiply(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "llm.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    for number in range(400):
        writer.add_tensor_info(f"x{number}", (1 << 20,), torch.ones(1).numpy().dtype, 4 << 20)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    for number in range(400):  # every tensor begins where the first one does
        at = data.index(f"x{number}".encode()) + len(f"x{number}") + 4 + 8 + 4
        data[at : at + 8] = bytes(8)
    path.write_bytes(bytes(data) + bytes((4 << 20) + 64))
    with pytest.raises(wb.WorkbenchError, match=r"llm.gguf: all tensors takes 1.6 GiB; expected 2\d\d MiB"):
        read_weights(path)


# ---- killed and interrupted


def test_drafts_of_killed_runs_are_swept_up(tmp_path):
    drafts = [tmp_path / f".{kind}.partial.a[0].wav" for kind in ("old", "new")]
    for draft in drafts:
        draft.write_bytes(b"half")
    os.utime(drafts[0], (time.time() - STALE - 60,) * 2)
    with atomic_write(tmp_path / "a[0].wav") as draft:
        draft.write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.partial.a[0].wav", "a[0].wav"]


def test_folders_of_killed_saves_are_swept_up(tmp_path):
    names = (".voice.draft-1", ".voice.old-1", ".voice.draft-new", "voice")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "cosyvoice3.yaml").touch()
        if name.endswith("1"):
            os.utime(tmp_path / name, (time.time() - STALE - 60,) * 2)
    with replace_folder(tmp_path / "voice", overwrite=True) as draft:
        (draft / "cosyvoice3.yaml").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".voice.draft-new", "voice"]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_ctrl_c_is_one_line(tmp_path, seconds):
    """While modules are imported as well as while a model runs."""
    words = [sys.executable, "-m", "workbench", "precision", "Hello there."]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted") and "Traceback" not in said


@pytest.mark.parametrize(
    "words",
    [
        ["mapping", "none.npz"],
        ["report", "none.trace"],
        ["report", "none.wav"],
        ["bisect", "none.trace", "none_either.trace"],
        ["suspects", "--self-test"],
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(words, tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "out", tmp_path / ("x" * 300)):
        assert main([*words, "-o", str(place)]) == 2
        assert "cannot be written" in capsys.readouterr().err
