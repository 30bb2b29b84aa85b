"""Formats of dumps: every kind of file that people keep tensors in is read with the right values, or refused."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from tests.paths import ASSETS
from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps import gguf_files, nested_files
from workbench.trace.importers.dumps.mapping import read_foreign
from workbench.trace.importers.dumps.tensor_files import open_tensors

MEL = np.arange(80 * 3, dtype=np.float32).reshape(80, 3)
RULE = '[fields."flow/mel"]\nname = "{}"\naxes = ["one", "mel", "target_frame"]\n'


def read(path, name, folder):
    mapping = folder / "map.toml"
    mapping.write_text(RULE.format(name))
    return read_foreign(path, mapping)


def save_npz(path):
    np.savez(path, mel=MEL)


def save_npy(path):
    np.save(path, MEL[None])


def save_fortran(path):
    np.save(path, np.asfortranarray(MEL).astype(">f4"))


def save_pt(path):
    torch.save({"mel": torch.from_numpy(MEL)}, path)


def save_old_pt(path):
    torch.save({"mel": torch.from_numpy(MEL)}, path, _use_new_zipfile_serialization=False)


def save_bare_tensor(path):
    torch.save(torch.from_numpy(MEL), path)


def save_safetensors(path):
    save_file({"mel": torch.from_numpy(MEL)}, path)


def save_json(path):
    path.write_text(json.dumps({"rate": 24000, "mel": MEL.tolist()}))


def save_flat_json(path):
    path.write_text(json.dumps({"mel": {"shape": [1, 80, 3], "data": MEL.ravel().tolist()}}))


def save_text(delimiter):
    return lambda path: np.savetxt(path, MEL, delimiter=delimiter)


def save_raw(path):
    MEL.tofile(path)


def save_half(path):
    MEL.astype("<f2").tofile(path)


KINDS = {
    "a.npz": save_npz,
    "mel.npy": save_npy,
    "mel_fortran_big_endian.npy": save_fortran,
    "a.pt": save_pt,
    "a.pth": save_pt,
    "a.bin": save_pt,
    "old.pt": save_old_pt,
    "mel.pt": save_bare_tensor,
    "a.safetensors": save_safetensors,
    "no_suffix": save_safetensors,
    "a.json": save_json,
    "b.json": save_flat_json,
    "mel.csv": save_text(","),
    "mel.tsv": save_text("\t"),
    "mel.txt": save_text(" "),
    "mel_1x80x3.f32": save_raw,
    "mel.[80, 3].raw": save_raw,
    "mel_(1,80,3).bin": save_raw,
    "mel_80_3.f32": save_raw,
    "mel-1-80-3.dat": save_raw,
    "mel_80x3.f16": save_half,
    "mel_float16_80x3.bin": save_half,
}


@pytest.mark.parametrize("file", KINDS)
def test_a_mel_is_read_from_every_kind_of_file(tmp_path, file):
    KINDS[file](tmp_path / file)
    [name] = open_tensors(tmp_path / file).tensors
    trace = read(tmp_path / file, name, tmp_path)
    assert torch.equal(trace["flow/mel"].float(), torch.from_numpy(MEL))


@pytest.mark.parametrize("file", [name for name in KINDS if name.startswith("mel")])
def test_a_file_of_one_tensor_has_its_name_without_suffix(tmp_path, file):
    KINDS[file](tmp_path / file)
    assert torch.equal(
        read(tmp_path, file.rpartition(".")[0], tmp_path)["flow/mel"].float(), torch.from_numpy(MEL)
    )


def test_a_shape_in_a_name_is_no_part_of_the_tensors_name(tmp_path):
    MEL.tofile(tmp_path / "mel_1x80x3.f32")
    assert len(read(tmp_path, "mel", tmp_path)) == 1


def test_a_folder_may_hold_files_of_several_kinds(tmp_path):
    np.savez(tmp_path / "flow.npz", mel=MEL)
    np.save(tmp_path / "hift_wav.npy", np.ones(1440, "<f4"))
    (tmp_path / "notes.txt").write_text("made on Monday")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    trace = wb.open(tmp_path)
    assert list(trace) == ["flow/mel", "hift/wav"] and len(trace.wav) == 1440
    assert "broken.npy cannot be read" in " ".join(trace.attrs["notes"])


def test_nested_and_listed_tensors_are_named_by_their_path(tmp_path):
    x = [torch.full((1, 80, 2), float(k)) for k in range(3)]
    torch.save(
        {"flow": {"x": x, "note": "hi"}, "hift": {"wav": torch.ones(960)}, "ids": [3, 4]}, tmp_path / "a.pt"
    )
    assert list(open_tensors(tmp_path / "a.pt").tensors) == [
        "flow.x.0",
        "flow.x.1",
        "flow.x.2",
        "hift.wav",
        "ids",
    ]
    mapping = tmp_path / "map.toml"
    mapping.write_text('[fields."flow/x"]\nname = "flow.x.{step}"\naxes = ["one", "mel", "frame"]\n')
    assert wb.open(tmp_path / "a.pt", mapping)["flow/x"][:, 0, 0].tolist() == [0, 1, 2]


def test_numbers_of_raw_files_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "mel_80x3.f32").write_bytes(MEL.tobytes()[:-4])  # one value is missing
    with pytest.raises(WorkbenchError, match=r"has shape \(239,\)"):
        read(tmp_path, "mel_80x3.f32", tmp_path)


def test_token_ids_in_text_are_integers(tmp_path):
    (tmp_path / "token.csv").write_text("236,234,8\n")
    mapping = tmp_path / "map.toml"
    mapping.write_text('[fields."lm/speech_token"]\nname = "token"\naxes = ["token"]\n')
    token = wb.open(tmp_path / "token.csv", mapping)["lm/speech_token"]
    assert token.dtype == torch.int64 and token.tolist() == [236, 234, 8]


@pytest.mark.parametrize("kind", ["folder", "dangling", "loop"])
def test_a_raw_file_that_is_none_is_refused(tmp_path, kind):
    path = tmp_path / "dump" / "x0.f32"
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.with_name("none.f32" if kind == "dangling" else "x0.f32"))
    with pytest.raises(WorkbenchError, match=r"x0\.f32 is no file, or a link to none"):
        wb.open(path.parent)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("foreign_25102c.safetensors", "step3_v1 is float8_e4m3fn"),
        ("foreign_81da30.pt", "no shipped mapping fits"),
        ("foreign_84b53e.npz", "foreign_84b53e.npz cannot be read: Bad CRC-32"),
    ],
)
def test_damaged_and_odd_tensors_are_told_in_words(file, match):
    with pytest.raises(WorkbenchError, match=match):
        wb.open(ASSETS / "dumps" / file)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3, device="meta"), torch.zeros(3).to_sparse(), torch.zeros(3).to(torch.float8_e5m2)],
)
def test_tensors_without_plain_values_are_refused(tmp_path, value):
    torch.save({"x": value}, tmp_path / "odd.pt")
    mapping = tmp_path / "map.toml"
    mapping.write_text('[fields."hift/wav"]\nname = "x"\naxes = ["sample"]\n')
    with pytest.raises(WorkbenchError, match=r"odd.pt cannot be read|expected"):
        read_foreign(tmp_path / "odd.pt", mapping)


def test_the_class_that_a_pickle_holds_is_named(tmp_path):
    torch.save({"x": np.arange(3)}, tmp_path / "arrays.pt")
    with pytest.raises(WorkbenchError, match=r"arrays.pt holds objects such as numpy\S+ and was not opened"):
        wb.open(tmp_path / "arrays.pt")


def test_archives_that_unpack_to_far_more_than_their_size_are_refused(tmp_path):
    np.savez_compressed(
        tmp_path / "bomb.npz", **{f"step{k}_v1": np.zeros((1, 80, 100_000), "f4") for k in (1, 2, 3, 4)}
    )
    assert (tmp_path / "bomb.npz").stat().st_size < 300_000
    with pytest.raises(WorkbenchError, match=r"(takes|up to) .* MiB for a file of this size"):
        wb.open(tmp_path / "bomb.npz")


def test_text_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[" + "[]," * 600 + "1]")
    monkeypatch.setattr(nested_files, "MAX_BRACKETS", 500)
    with pytest.raises(WorkbenchError, match="too many lists"):
        wb.open(tmp_path / "a.json")
    monkeypatch.setattr(nested_files, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(WorkbenchError, match=r"expected 0 at most: save .npz"):
        wb.open(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"a": "b"}', '{"a": [[1], [2, 3]]}', "\x00\x01"])
def test_broken_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(WorkbenchError, match=r"a.json"):
        wb.open(tmp_path / "a.json")


# ---- GGUF


@pytest.fixture
def archive(tmp_path):
    """A small archive as CrispASR's reference dumps are, with one quantised tensor."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "ref.gguf", "crispasr.reference")
    rows = np.random.default_rng(0).standard_normal((6, 80)).astype("f4")
    writer.add_tensor("flow_euler_mu_in", rows)
    writer.add_tensor("flow_euler_x_init", rows.astype("f2"))
    blocks = np.ones((6, 96), "f4")
    writer.add_tensor(
        "q",
        gguf.quants.quantize(blocks, gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "ref.gguf", torch.from_numpy(rows)


def test_gguf_archives_are_read_by_the_shipped_mapping(archive):
    path, rows = archive
    trace = wb.open(path)
    assert trace.attrs["mapping"] == "crispasr.toml" and trace.attrs["unmapped"] == ["q"]
    assert torch.equal(trace["flow/mu"], rows.T) and torch.equal(trace["flow/noise"], rows.T.half())
    q = open_tensors(path).tensors["q"]
    assert q.shape == (6, 96) and torch.allclose(q.read(), torch.ones(6, 96), atol=0.01)


def test_gguf_files_cut_anywhere_are_refused(archive):
    path, _ = archive
    content = path.read_bytes()
    for length in (4, 20, 60, 200, len(content) - 500):
        path.write_bytes(content[:length])
        with pytest.raises(WorkbenchError, match=r"ref.gguf"):
            wb.open(path)


def test_vocabularies_in_gguf_files_are_stepped_over(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "lm.gguf", "qwen2")
    writer.add_array("tokenizer.ggml.tokens", [f"word{k}" for k in range(1000)])
    writer.add_array("tokenizer.ggml.token_type", list(range(1000)))
    writer.add_tensor("hift_wav", np.arange(5, dtype="f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert wb.open(tmp_path / "lm.gguf").wav.tolist() == [0, 1, 2, 3, 4]


def test_gguf_headers_that_claim_endless_lists_are_refused(archive, monkeypatch):
    path, _ = archive
    content = bytearray(path.read_bytes())
    content[16:24] = (2**62).to_bytes(8, "little")  # the number of entries of the header
    path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=r"ref.gguf"):
        wb.open(path)
    monkeypatch.setattr(gguf_files, "MAX_READS", 5)
    with pytest.raises(WorkbenchError, match="more than 5 entries"):
        wb.open(path)


def test_without_the_library_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "ref.gguf").write_bytes(b"GGUF\3\0\0\0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(WorkbenchError, match=r"ref.gguf is a GGUF file, .* pip install gguf"):
        wb.open(tmp_path / "ref.gguf")
