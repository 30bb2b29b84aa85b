"""Dumps without a mapping of their own: which shipped mapping is taken, and what is proposed where none fits."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.trace.importers.dumps.mapping_file import read_mapping
from workbench.trace.importers.dumps.proposal import propose_mapping
from workbench.trace.schema import FIELDS

LENGTHS = {"mel": 80, "embedding": 192, "bin": 9}


def values(field, seed=0):
    """A field's tensor with made-up values: 3 knots, 2 steps, 5 of everything else."""
    shape = [LENGTHS.get(dim, {"knot": 3, "step": 2}.get(dim, 5)) for dim in FIELDS[field].dims]
    draw = torch.Generator().manual_seed(seed)
    if FIELDS[field].unit == "id":
        return torch.randint(0, 99, shape, generator=draw)
    return torch.randn(shape, generator=draw)


@pytest.mark.parametrize("path", sorted(data_path("foreign").glob("*.toml")), ids=lambda path: path.name)
def test_each_shipped_mapping_is_valid_and_has_a_signature(path):
    rules = read_mapping(path)
    names = [rule["name"] for rule in rules["fields"].values()]
    assert (
        rules["signature"]
        and sum(name in names for name in rules["signature"]) >= len(rules["signature"]) - 1
    )


@pytest.mark.parametrize("separator", ["/", ".", "_"])
def test_names_of_the_schema_need_no_mapping(tmp_path, separator):
    fields = {field: values(field) for field in ("flow/mel", "flow/x", "in/text_token", "hift/wav")}
    arrays = {field.replace("/", separator): value[None].numpy() for field, value in fields.items()}
    np.savez(tmp_path / "dump.npz", **arrays)
    trace = wb.open(tmp_path / "dump.npz")
    assert trace.attrs["mapping"] == "the names of the schema"
    assert all(torch.equal(trace[field], value) for field, value in fields.items())


def test_one_name_of_the_schema_among_many_others_is_not_enough(tmp_path):
    np.savez(tmp_path / "dump.npz", flow_mel=np.zeros((80, 5)), a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(
        WorkbenchError, match=r"no shipped mapping fits\. .*`workbench mapping dump.npz` proposes one"
    ):
        wb.open(tmp_path / "dump.npz")


def test_the_mapping_that_fits_is_named_with_what_it_left(tmp_path):
    v = {f"step{k}_v{branch}": torch.zeros(1, 80, 5) for k in (1, 2) for branch in (1, 2)}
    save_file(v | {"extra": torch.zeros(2)}, tmp_path / "dump.safetensors")
    trace = wb.open(tmp_path / "dump.safetensors")
    assert list(trace) == ["flow/velocity_cond", "flow/velocity_uncond"]
    assert trace.attrs["notes"][0].endswith("velocity_cond, flow/velocity_uncond; not read: extra")
    assert trace.attrs["notes"][0].startswith("dump.safetensors was read by steps.toml")


def test_a_shipped_mapping_whose_shapes_do_not_fit_is_not_taken(tmp_path):
    save_file({"step1_v1": torch.zeros(7)}, tmp_path / "dump.safetensors")
    with pytest.raises(WorkbenchError, match=r"no shipped mapping fits; step1_v1 has shape \(7,\)"):
        wb.open(tmp_path / "dump.safetensors")


def test_names_of_the_table_of_logs_need_no_mapping(tmp_path):
    x, v, noise = torch.randn(2, 1, 80, 5), torch.randn(2, 1, 80, 5), torch.randn(1, 80, 5)
    arrays = {f"step_{k:02d}_x": x[k] for k in (0, 1)} | {f"step_{k:02d}_v_cond": v[k] for k in (0, 1)}
    arrays |= {"flow_noise": noise, "mel": torch.randn(1, 80, 3), "wav": torch.randn(9)}
    for name, value in arrays.items():
        np.save(tmp_path / f"{name}.npy", value.numpy())
    trace = wb.open(tmp_path)
    assert torch.equal(trace["flow/x"], torch.cat((noise, x[:, 0])))
    assert torch.equal(trace["flow/velocity_cond"], v[:, 0]) and torch.equal(trace.wav, arrays["wav"])
    assert "was read by names that logs.toml has" in trace.attrs["notes"][0]


@pytest.mark.parametrize(
    "arrays",
    [
        {f"x{k}": (1, 80, 5) for k in range(4)},  # nobody knows whether the first state is the noise
        {"mel": (80, 5), "native_mel": (80, 5)},  # two candidates
        {"hidden_mel": (80, 5)},  # another word
        {"mel": (80, 80)},  # which axis is which
        {f"v{k}": (2, 80, 5) for k in range(3)},  # which branch is first
    ],
)
def test_what_names_leave_open_is_not_guessed(tmp_path, arrays):
    np.savez(tmp_path / "dump.npz", **{name: np.ones(shape, "f4") for name, shape in arrays.items()})
    with pytest.raises(WorkbenchError, match=r"`workbench mapping dump\.npz` proposes one"):
        wb.open(tmp_path / "dump.npz")
    assert propose_mapping(tmp_path / "dump.npz")


# ---- proposals


def opened_as_proposed(tmp_path, arrays):
    np.savez(tmp_path / "dump.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    text = propose_mapping(tmp_path / "dump.npz")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    return wb.open(tmp_path / "dump.npz", tmp_path / "mine.toml"), text


def test_steps_in_batches_of_two_are_proposed_as_branches(tmp_path):
    v, x, noise = torch.randn(2, 2, 80, 5), torch.randn(2, 1, 80, 5), torch.randn(1, 80, 5)
    arrays = {"noise": noise} | {f"step{k}_v": v[k] for k in (0, 1)} | {f"step{k}_x": x[k] for k in (0, 1)}
    trace, text = opened_as_proposed(tmp_path, arrays)
    assert torch.equal(trace["flow/velocity_cond"], v[:, 0]) and torch.equal(
        trace["flow/velocity_uncond"], v[:, 1]
    )
    assert torch.equal(trace["flow/x"], torch.cat((noise, x[:, 0])))
    assert "check your program" in text and "state 0 is taken for the one after the first step" in text


def test_a_first_state_that_equals_the_noise_is_taken_for_it(tmp_path):
    x = torch.randn(3, 80, 5)
    trace, text = opened_as_proposed(tmp_path, {"noise": x[0]} | {f"x_{k:02d}": x[k] for k in range(3)})
    assert torch.equal(trace["flow/x"], x) and "state 0 equals noise" in text


def test_as_many_states_as_velocities_and_one_more_begin_with_the_noise(tmp_path):
    arrays = {f"x{k}": torch.randn(1, 80, 5) for k in (0, 1, 2)} | {
        f"v_cond{k}": torch.randn(1, 80, 5) for k in (0, 1)
    }
    trace, text = opened_as_proposed(tmp_path, arrays)
    assert len(trace["flow/x"]) == 3 and "3 states for 2 steps" in text


def test_axes_are_told_by_their_lengths(tmp_path):
    arrays = {
        "mu": torch.randn(5, 80),
        "f0": torch.randn(1, 5),
        "wav": torch.randn(1, 1, 9),
        "magnitude": torch.rand(1, 4, 9),
        "speaker_embedding": torch.randn(192),
        "speech_tokens": torch.arange(7)[None],
    }
    trace, _ = opened_as_proposed(tmp_path, arrays)
    assert torch.equal(trace["flow/mu"], arrays["mu"].T)
    assert trace["hift/magnitude"].shape == (9, 4) and trace["lm/speech_token"].tolist() == list(range(7))
    assert (
        trace["hift/f0"].shape == (5,)
        and trace.wav.shape == (9,)
        and trace["in/spk_embedding"].shape == (192,)
    )


def test_what_has_no_field_is_listed(tmp_path):
    _, text = opened_as_proposed(
        tmp_path, {"mel": torch.randn(80, 5), "wobble\n2": torch.zeros(3), "x{0}": torch.zeros(2)}
    )
    assert "# no field: 'wobble\\\\n2' (3,)" in text.replace("\\n", "\\\\n") and "'x{0}'" in text


def test_a_dump_without_known_names_gets_no_proposal(tmp_path):
    np.savez(tmp_path / "dump.npz", a=np.zeros(3), b=np.zeros((4, 4)))
    with pytest.raises(WorkbenchError, match=r"dump.npz holds a 3, b 4x4, and no name of logs.toml"):
        propose_mapping(tmp_path / "dump.npz")


@pytest.mark.parametrize(
    "file", ["mel_80_38.f32", "mel_1x80x38.f16", "mel_1x80x38.f64", "mel.npy", "mel.pth", "mel.csv"]
)
def test_a_file_of_one_tensor_is_read_by_its_name_without_suffix_and_shape(tmp_path, file):
    mel, path = torch.rand(80, 38, dtype=torch.float64), tmp_path / file
    if path.suffix == ".npy":
        np.save(path, mel.numpy())
    elif path.suffix == ".pth":
        torch.save(mel, path)
    elif path.suffix == ".csv":
        np.savetxt(path, mel.numpy(), delimiter=",")
    else:
        mel.numpy().astype({".f16": "<f2", ".f32": "<f4", ".f64": "<f8"}[path.suffix]).tofile(path)
    assert torch.allclose(wb.open(path)["flow/mel"].double(), mel, atol=1e-3)


def test_a_folder_without_a_name_is_named_in_errors(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", abc=np.zeros((2, 3)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkbenchError, match=rf"^{tmp_path.name} holds a\.abc 2x3, and no shipped"):
        wb.open(".")


def test_a_folder_of_sounds_asks_for_one_of_them(tmp_path):
    for name in ("a.wav", "b.flac"):
        (tmp_path / name).write_bytes(b"RIFF")
    with pytest.raises(WorkbenchError, match=r"is a folder of 2 sounds; name one: a\.wav"):
        wb.open(tmp_path)
