"""Dumps of other implementations: fields in the schema's orientation, and errors for broken or hostile files."""

import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.plausibility import implausible
from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.mapping import read_foreign
from workbench.trace.trace import Trace

STEPS = "data/foreign/steps.toml"
WAV_RULE = '[fields."hift/wav"]\nname = "x"\naxes = ["sample"]\n'


@pytest.fixture
def tensors():
    draw = torch.Generator().manual_seed(0)
    names = [f"step{k}_{what}" for k in (1, 2, 3) for what in ("v1", "v2", "x")]
    return {name: torch.randn(1, 80, 6, generator=draw) for name in names}


def mapping(tmp_path, text):
    path = tmp_path / "map.toml"
    path.write_text(text)
    return path


def test_steps_are_stacked_in_order(tmp_path, tensors):
    save_file(
        tensors | {"step5_x": torch.zeros(1, 80, 6), "mu": torch.zeros(2)}, tmp_path / "dump.safetensors"
    )
    trace = read_foreign(tmp_path / "dump.safetensors", STEPS, text="hello", prompt_frames=2)
    assert list(trace) == ["flow/velocity_cond", "flow/velocity_uncond"]  # x: none knows where it began
    assert trace["flow/velocity_cond"].shape == (3, 80, 6)
    assert trace.attrs["unmapped"] == ["mu", "step1_x", "step2_x", "step3_x", "step5_x"]
    assert trace.prompt_frames == 2 and "flow/mel" not in trace


def test_states_follow_the_one_they_start_from(tmp_path, tensors):
    save_file(tensors | {"noise": torch.ones(1, 80, 6)}, tmp_path / "dump.safetensors")
    trace = read_foreign(tmp_path / "dump.safetensors", STEPS)
    assert list(trace) == ["flow/noise", "flow/x", "flow/velocity_cond", "flow/velocity_uncond"]
    assert trace["flow/x"].shape == (4, 80, 6) and torch.equal(trace["flow/x"][0], torch.ones(80, 6))
    assert torch.equal(trace["flow/x"][2], tensors["step2_x"][0])


@pytest.mark.parametrize("kind", ["npz", "pt", "f32"])
def test_npz_pt_and_raw_files_are_read(tmp_path, kind):
    mel = torch.arange(480.0).view(6, 80)
    rule = '[fields."flow/mel"]\nname = "NAME"\naxes = ["target_frame", "mel"]\nscale = 2.0\n'
    path = tmp_path / f"dump.{kind}"
    if kind == "npz":
        np.savez(path, NAME=mel.numpy())
    elif kind == "pt":
        torch.save({"NAME": mel, "step": 3}, path)
    else:
        path = tmp_path
        mel.numpy().astype("<f4").tofile(tmp_path / "mel.f32")
        rule = rule.replace("NAME", "mel.f32") + "shape = [6, 80]\n"
    trace = read_foreign(path, mapping(tmp_path, rule))
    assert torch.equal(trace["flow/mel"], 2 * mel.T)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("fields", "cannot be read as a mapping"),
        ("", "has no fields"),
        ('[fields."flow/wobble"]\nname = "x"\naxes = ["mel"]', "flow/wobble"),
        ('[fields."flow/mel"]\nname = "x"', "needs name and axes"),
        ('[fields."flow/mel"]\nname = "x"\naxes = ["mel", "frame"]', "target_frame"),
        ('[fields."hift/wav"]\nname = "x{step}"\naxes = []', "no steps"),
        ('[fields."hift/wav"]\nname = "y"\naxes = ["sample"]', "no tensor of dump.safetensors"),
        ('[fields."hift/wav"]\nname = "x"\naxes = ["sample"]', r"has shape \(1, 5\)"),
        ('[fields."hift/wav"]\nname = "x"\naxes = ["sample"]\nshape = [7]', "5 values"),
        ('[fields."hift/wav"]\nname = 3\naxes = ["sample"]', "name of hift/wav is 3"),
        ('[fields."hift/wav"]\nname = "x"\naxes = "sample"', "axes of hift/wav is 'sample'"),
        ('[fields."hift/wav"]\nname = "x"\naxes = [1]', r"axes \['1'\]"),
        ('[fields."hift/wav"]\nname = "x"\naxes = ["sample"]\nscale = "big"', "scale of hift/wav"),
        ('sample_rate = "x"\n[fields."hift/wav"]\nname = "x"\naxes = ["sample"]', "sample_rate is 'x'"),
    ],
)
def test_broken_mappings_are_refused(tmp_path, text, match):
    save_file({"x": torch.zeros(1, 5)}, tmp_path / "dump.safetensors")
    with pytest.raises(WorkbenchError, match=match):
        read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, text))


X_RULE = '[fields."flow/x"]\nname = "NAME"\naxes = ["one", "mel", "frame"]\n'


@pytest.mark.parametrize("name", ["step{step}_x", "step{step:03d}_x", "step{step:03}_x"])
def test_steps_may_be_padded_with_zeros(tmp_path, name):
    x = {f"step{k:03d}_x": torch.full((1, 80, 2), float(k)) for k in range(12)}
    save_file(x | {"noise": torch.full((1, 80, 2), -1.0)}, tmp_path / "dump.safetensors")
    rule = X_RULE.replace("NAME", name) + 'start = ["noise"]\n'
    trace = read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, rule))
    assert trace["flow/x"][:, 0, 0].tolist() == [*range(-1, 12)] and trace.attrs["unmapped"] == []


def test_a_branch_is_taken_from_a_batch_of_two(tmp_path):
    v = {
        f"v{k}": torch.stack((torch.full((80, 2), 1.0 + k), torch.full((80, 2), -1.0 - k))) for k in range(3)
    }
    save_file(v, tmp_path / "dump.safetensors")
    text = "".join(
        f'[fields."flow/velocity_{branch}"]\nname = "v{{step}}"\naxes = ["batch", "mel", "frame"]\nindex = {index}\n'
        for index, branch in enumerate(("cond", "uncond"))
    )
    trace = read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, text))
    assert trace["flow/velocity_cond"][:, 0, 0].tolist() == [1, 2, 3]
    assert trace["flow/velocity_uncond"][:, 0, 0].tolist() == [-1, -2, -3]
    one = X_RULE.replace("flow/x", "flow/velocity_cond").replace("NAME", "v{step}")
    with pytest.raises(WorkbenchError, match=r'"one" has 2 entries; if they are the branches .* index = 0'):
        read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, one))
    with pytest.raises(WorkbenchError, match='index is 2 and "batch" has 2 entries'):
        read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, text.replace("index = 0", "index = 2")))


def test_an_axis_of_one_may_be_missing(tmp_path):
    save_file({"x0": torch.ones(80, 2), "x1": torch.zeros(1, 80, 2)}, tmp_path / "dump.safetensors")
    trace = read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, X_RULE.replace("NAME", "x{step}")))
    assert trace["flow/x"].shape == (2, 80, 2)


@pytest.mark.parametrize(
    ("names", "rest", "match"),
    [
        (["y0"], "", r"is called 'x\{step\}' for any step, and flow/x needs them"),
        (["x1", "x2"], "", "the steps 1 to 2; write first = 1"),
        (["x1", "x01"], "first = 1\n", "has x01 and x1, both step 1"),
        (["x0"], "first = -1\n", "first and index of flow/x count from 0"),
        (["x0"], "index = 0\n", "needs both the axis"),
        (["x0"], "scale = " + "9" * 400 + "\n", "scale of flow/x is a huge number"),
        (["x0"], "scale = nan\n", "scale of flow/x is nan"),
        (["x0"], "shape = [1, 99999999999999999999, 2]\n", "no number of entries"),
        (["x0"], "start = [1]\n", "no list of names"),
        (["x0"], "first = true\n", "first of flow/x is True"),
    ],
)
def test_steps_that_do_not_fit_are_refused(tmp_path, names, rest, match):
    save_file({name: torch.zeros(1, 80, 2) for name in names}, tmp_path / "dump.safetensors")
    rule = X_RULE.replace("NAME", "x{step}") + rest
    with pytest.raises(WorkbenchError, match=match):
        read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, rule))


def test_steps_after_a_gap_are_left_out_and_named(tmp_path):
    save_file({f"x{k}": torch.zeros(1, 80, 2) for k in (0, 1, 3, 4)}, tmp_path / "dump.safetensors")
    trace = read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, X_RULE.replace("NAME", "x{step}")))
    assert len(trace["flow/x"]) == 2 and trace.attrs["unmapped"] == ["x3", "x4"]
    assert "step 2 is missing, so 2 later steps were left out" in trace.attrs["notes"][0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, "cannot be read as a mapping"),
        ("a = " + "9" * 5000, "cannot be read as a mapping"),
        ('name = "x"\naxes = []\n', "stands at the top"),
        ("sample_rate = 1e12\n" + WAV_RULE, "sample_rate is 1000000000000.0"),
        ("signature = [1]\n" + WAV_RULE, "a list of names as signature"),
        ("[attrs]\nstreaming = 1\n" + WAV_RULE, "for each attribute"),
        (WAV_RULE.replace('"x"', '"x{foo}"'), "has braces"),
        ("#" * (1 << 20) + "\n" + WAV_RULE, "at most"),
    ],
)
def test_hostile_mappings_are_refused(tmp_path, text, match):
    save_file({"x": torch.zeros(5)}, tmp_path / "dump.safetensors")
    with pytest.raises(WorkbenchError, match=match):
        read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, text))


def test_numbers_of_a_dump_become_attributes(tmp_path):
    save_file({"x": torch.zeros(5), "is_chunk": torch.tensor(1)}, tmp_path / "dump.safetensors")
    text = '[attrs]\nstreaming = "is_chunk"\nfirst_step = "none"\n' + WAV_RULE
    trace = read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, text))
    assert trace.attrs["streaming"] == 1 and trace.attrs["unmapped"] == [] and "first_step" not in trace.attrs
    with pytest.raises(WorkbenchError, match="expects one number for an attribute"):
        read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, text.replace("is_chunk", "x")))


def test_the_prompt_is_what_the_target_leaves_of_all_frames(tmp_path):
    save_file({"x0": torch.ones(80, 7), "mel": torch.zeros(80, 4)}, tmp_path / "dump.safetensors")
    mel = '[fields."flow/mel"]\nname = "mel"\naxes = ["mel", "target_frame"]\n'
    rule = mapping(tmp_path, X_RULE.replace("NAME", "x{step}") + mel)
    assert read_foreign(tmp_path / "dump.safetensors", rule).prompt_frames == 3
    assert read_foreign(tmp_path / "dump.safetensors", rule, prompt_frames=2).prompt_frames == 2


def test_taps_are_read_at_any_steps_with_their_axes_in_one_order(tmp_path):
    dump = {
        "step1_block0": torch.randn(2, 6, 8),
        "step4_block0": torch.randn(2, 6, 8),
        "conv": torch.ones(1, 8, 6),
    }
    save_file(dump, tmp_path / "dump.safetensors")
    text = (
        '[taps."flow/{step}/transformer_blocks.0"]\nname = "step{step}_block0"\n'
        'axes = ["branch", "width", "frame"]\nfirst = 1\n'
        '[taps."flow/0/conv1"]\nname = "conv"\naxes = ["one", "channel", "frame"]\n'
    )
    trace = read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, text))
    assert list(trace.taps) == [f"flow/{step}/{name}" for step, name in ((0, "transformer_blocks.0"),)] + [
        "flow/3/transformer_blocks.0",
        "flow/0/conv1",
    ]
    assert torch.equal(trace.taps["flow/3/transformer_blocks.0"], dump["step4_block0"].transpose(1, 2))
    assert trace.taps["flow/0/conv1"].shape == (8, 6) and trace.attrs["unmapped"] == []


@pytest.mark.parametrize(
    ("tap", "rest", "match"),
    [
        ("proj_out", 'name = "x"\naxes = []', "no stage and step"),
        ("flow/x/proj_out", 'name = "x"\naxes = []', "no stage and step"),
        ("flow/{step}/proj_out", 'name = "x"\naxes = []', "expected both or none"),
        ("flow/0/proj_out", 'name = "x"\naxes = ["mel"]', "expected some of"),
        ("flow/0/proj_out", 'name = "x"\naxes = ["width", "width"]', "expected some of"),
        ("flow/0/proj_out", 'name = "x"', "needs name and axes"),
    ],
)
def test_broken_tables_of_taps_are_refused(tmp_path, tap, rest, match):
    save_file({"x": torch.zeros(1, 5)}, tmp_path / "dump.safetensors")
    with pytest.raises(WorkbenchError, match=match):
        read_foreign(tmp_path / "dump.safetensors", mapping(tmp_path, f'[taps."{tap}"]\n{rest}'))


class Evil:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("ran",))


def test_broken_and_malicious_dumps_are_refused(tmp_path, capsys):
    for name, content in (("a.safetensors", b"\0" * 40), ("b.npz", b"PK"), ("c.pt", b"x"), ("d.bin", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WorkbenchError, match=name[0]):
            read_foreign(tmp_path / name, STEPS)
    torch.save({"step1_x": Evil()}, tmp_path / "evil.pt")
    np.savez(tmp_path / "evil.npz", step1_x=np.array([Evil()], dtype=object))
    for name in ("evil.pt", "evil.npz", "none.pt"):
        with pytest.raises(WorkbenchError):
            read_foreign(tmp_path / name, STEPS)
    assert "ran" not in capsys.readouterr().out


WAV = '[fields."hift/wav"]\nname = "x"\naxes = ["sample"]'


def npz(path, **headers):
    """Members with a header and no data."""
    with zipfile.ZipFile(path, "w") as file:
        for name, shape in headers.items():
            text = (
                f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
            )
            file.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)


def test_dumps_that_claim_huge_sizes_are_refused_in_little_memory(tmp_path):
    rule = mapping(tmp_path, WAV)
    header = b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    npz(tmp_path / "b.npz", x=(10**12,))
    npz(tmp_path / "c.npz", x=(-1,))
    torch.save({"x": torch.zeros(1).expand(10**11)}, tmp_path / "d.pt")
    with open(tmp_path / "x.f32", "wb") as file:
        file.truncate(6 << 30)  # a hole
    raw = tmp_path / "raw.toml"
    raw.write_text(WAV.replace('"x"', '"x.f32"'))
    tracemalloc.start()
    try:
        for name, match in (
            ("a.safetensors", "a.safe"),
            ("b.npz", "claims to be of shape"),
            ("c.npz", "c.npz"),
            ("d.pt", "372.5 GiB"),
        ):
            with pytest.raises(WorkbenchError, match=match):
                read_foreign(tmp_path / name, rule)
        with pytest.raises(WorkbenchError, match=r"x\.f32 takes 6\.0 GiB"):
            read_foreign(tmp_path, raw)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    npz(tmp_path / "e.npz", y=(10**12,), x=(0,))
    assert read_foreign(tmp_path / "e.npz", rule).attrs["unmapped"] == ["y"]  # and is not read


def test_dumps_of_wrong_kind_are_refused(tmp_path):
    rule = mapping(tmp_path, WAV)
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    torch.save({"x": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "complex.pt")
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    (tmp_path / "x.f32").write_bytes(b"12345")
    (tmp_path / "raw.toml").write_text(WAV.replace('"x"', '"x.f32"'))
    for name, match in (
        ("list.pt", "no tensor of list.pt is in map.toml; it holds 0"),
        ("complex.pt", "complex64"),
        ("text.npz", "text.npz cannot be read"),
    ):
        with pytest.raises(WorkbenchError, match=match):
            read_foreign(tmp_path / name, rule)
    with pytest.raises(WorkbenchError, match="5 bytes"):
        read_foreign(tmp_path, tmp_path / "raw.toml")


def test_steps_of_different_shapes_are_refused(tmp_path, tensors):
    tensors["step3_v1"] = torch.zeros(1, 80, 7)
    save_file(tensors, tmp_path / "dump.safetensors")
    with pytest.raises(WorkbenchError, match=r"step1_v1 has \(80, 6\) and step3_v1 \(80, 7\).*one run"):
        read_foreign(tmp_path / "dump.safetensors", STEPS)


def test_shipped_mappings_can_be_read(tmp_path):
    """The shapes of the case's dumps, with made-up values."""
    shapes = {"f0": (1, 1, 7), "source": (1, 1, 7 * 480), "upsampled_f0": (1, 1, 7 * 480)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "native.safetensors")
    native = read_foreign(tmp_path / "native.safetensors", "data/foreign/case-native.toml")
    assert native["hift/f0"].shape == (7,) and native.attrs["unmapped"] == ["upsampled_f0"]
    shapes = {
        "input_mel": (1, 80, 7),
        "f0_output": (1, 7),
        "sine_merge": (1, 3360, 1),
        "final_audio": (1, 3360),
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "vocoder.safetensors")
    assert len(read_foreign(tmp_path / "vocoder.safetensors", "data/foreign/case-vocoder.toml")) == 4
    shapes = {"python_f0": (1, 7), "python_hift_source": (1, 1, 3360), "python_speech_tokens": (1, 9)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "python.safetensors")
    assert len(read_foreign(tmp_path / "python.safetensors", "data/foreign/case-python.toml")) == 3


def trace_of(**data):
    return Trace({name.replace("_", "/", 1): value for name, value in data.items()}, {"sample_rate": 24000})


def test_implausible_values_are_named():
    time = torch.arange(24000) / 24000
    tone = 0.5 * torch.sin(2 * torch.pi * 150 * time)
    mel = torch.full((80, 50), -6.0)
    assert implausible(trace_of(flow_mel=mel, hift_f0=torch.full((50,), 150.0), hift_wav=tone)) == []
    f0 = torch.full((50,), 150.0)
    f0[3] = 103_590
    assert "103,590 Hz" in implausible(trace_of(hift_f0=f0))[0]
    assert "pinned to +-0.99" in implausible(trace_of(hift_wav=(9 * tone).clamp(-0.99, 0.99)))[0]
    assert "silent" in implausible(trace_of(hift_wav=tone * 1e-5))[0]
    assert "DC offset" in implausible(trace_of(hift_wav=tone + 0.1))[0]
    assert "log10" in implausible(trace_of(flow_mel=mel / 2.303))[0]
    mel[0, 0] = torch.nan
    assert "1 NaN or Inf" in implausible(trace_of(flow_mel=mel))[0]


def test_a_cause_is_named_without_a_checkpoint():
    """As in the case: f0 agrees to the last digits, the excitation does not."""
    f0 = torch.full((50,), 150.0)
    a = trace_of(hift_f0=f0, hift_source=torch.randn(24000))
    b = trace_of(hift_f0=f0 * (1 + 2e-6), hift_source=torch.randn(24000))
    found = compare(a, b)
    assert list(found.rows["verdict"]) == ["ROUNDING", "DIVERGED"]
    assert "part at hift/source" in found.line and "its input hift/f0 agrees" in found.line
    alone = compare(trace_of(hift_source=a["hift/source"]), trace_of(hift_source=b["hift/source"]))
    assert "hift/f0 is not on both sides" in alone.line
