"""Traces: the schema, selecting and saving fields, what a recorder keeps, and broken or hostile trace files."""

import contextlib
import json
import os
import stat
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from tests.profiles import examples
from tests.trace.whole_stats import whole_stats
from workbench.errors import WorkbenchError
from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY, Recorder, as_save, summarise, taps
from workbench.trace.schema import FIELDS, STATS, VERSION, dims_of
from workbench.trace.trace import KEY, Trace

ABOUT = {"text": "hello", "sample_rate": 24000, "timings": {"lm": 0.5}, "prompt_frames": 2}


@pytest.fixture
def trace():
    draw = torch.Generator().manual_seed(0)
    return Trace(
        {
            "lm/speech_token": torch.arange(3),
            "flow/x": torch.randn(4, 80, 8, generator=draw),
            "flow/mel": torch.randn(80, 6, generator=draw, dtype=torch.float16),
            "hift/wav": torch.randn(24000, generator=draw),
        },
        ABOUT,
    )


def test_dims_of_gives_the_dimensions_of_fields_and_statistics():
    assert dims_of("flow/x") == ("knot", "mel", "frame")
    assert dims_of("flow/x.stats") == ("knot", "region", "stat")
    assert dims_of("flow/spks.stats") == ("stat",) and dims_of("lm/entropy.stats") == ("draw", "stat")
    assert dims_of("flow/y") is None and dims_of("flow/y.stats") is None
    assert all(field.meaning and field.dims for field in FIELDS.values())


def test_unknown_names_and_wrong_shapes_are_refused():
    with pytest.raises(WorkbenchError, match="flow/wobble"):
        Trace({"flow/wobble": torch.zeros(3)}, {})
    with pytest.raises(WorkbenchError, match="knot, mel, frame"):
        Trace({"flow/x": torch.zeros(80, 3)}, {})
    for shape in ((4, 2, 6), (4, 3, 5), (4, 6)):  # the first is what version 1 kept
        with pytest.raises(WorkbenchError, match="knot, region: 3, stat: 6"):
            Trace({"flow/x.stats": torch.zeros(shape)}, {})


def test_select_takes_parts_by_dimension_name(trace):
    assert trace.dims("flow/mel") == ("mel", "target_frame")
    assert torch.equal(trace.select("flow/x", knot=3), trace["flow/x"][3])
    assert torch.equal(trace.select("flow/x", region="target", mel=slice(0, 5)), trace["flow/x"][:, :5, 2:])
    assert trace.select("flow/x", region="prompt").shape[-1] == 2
    assert torch.equal(trace.select("flow/x", region="whole"), trace["flow/x"])
    for wrong in ({"step": 1}, {"region": "middle"}, {"knot": 9}):
        with pytest.raises(WorkbenchError, match="flow/x"):
            trace.select("flow/x", **wrong)
    with pytest.raises(WorkbenchError, match="region"):
        trace.select("flow/mel", region="target")


def test_a_saved_trace_loads_unchanged(trace, tmp_path):
    path = trace.save(tmp_path / "new" / "run.safetensors")
    back = Trace.load(path)
    assert list(back) == list(trace) and back.attrs == ABOUT
    assert all(
        torch.equal(back[name], trace[name]) and back[name].dtype == trace[name].dtype for name in trace
    )
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]
    assert "1.00 s" in repr(back) and "flow/x" in back._repr_html_()


def test_taps_are_saved_beside_the_fields(trace, tmp_path):
    name = "flow/0/transformer_blocks.0"
    again = Trace.load(Trace(trace.data, ABOUT, {name: torch.ones(2, 4, 8)}).save(tmp_path / "taps.trace"))
    assert list(again) == list(trace) and list(again.taps) == [name]
    assert again.taps[name].shape == (2, 4, 8)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_saved_file_has_the_mode_of_any_new_file(trace, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        path = trace.save(tmp_path / "run")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_fields_that_share_memory_can_be_saved(tmp_path):
    token = torch.arange(5)
    data = {"in/lm_prompt_token": token, "in/flow_prompt_token": token}
    assert len(Trace.load(Trace(data, {}).save(tmp_path / "a"))) == 2


def test_a_failed_save_leaves_the_old_file(trace, tmp_path):
    path = trace.save(tmp_path / "run")
    with pytest.raises(TypeError):
        Trace(trace.data, {"of": object()}).save(path)
    assert Trace.load(path).attrs == ABOUT and len(list(tmp_path.iterdir())) == 1


def test_files_that_are_not_traces_are_refused(trace, tmp_path):
    path = trace.save(tmp_path / "run")
    whole = path.read_bytes()
    bad = tmp_path / "bad"

    def refused(match):
        with pytest.raises(WorkbenchError, match=match):
            Trace.load(bad)

    refused("does not exist")
    for size in (0, 7, 200, len(whole) - 1):
        bad.write_bytes(whole[:size])
        refused("truncated")
    save_file({"x": torch.zeros(2)}, bad)
    refused("mapping")
    save_file({"x": torch.zeros(2)}, bad, metadata={KEY: json.dumps({"version": VERSION, "attrs": {}})})
    refused("x, which no trace has")
    save_file({}, bad, metadata={KEY: json.dumps({"version": VERSION + 1, "attrs": {}})})
    refused(f"version {VERSION + 1}")
    for text in ("", "[]", '{"version": 1}', '{"version": 1, "attrs": 3}'):
        save_file({}, bad, metadata={KEY: text})
        refused("not what Trace.save writes")
    huge = {"hift/wav": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    header = json.dumps({"__metadata__": {KEY: "{}"}} | huge).encode()
    bad.write_bytes(len(header).to_bytes(8, "little") + header)
    refused("cannot be read|not what")


def safetensors_of(fields, attrs, data=b""):
    """A file with any header: (dtype, shape, length in bytes) by name of the field."""
    offsets, entries = 0, {}
    for name, (dtype, shape, size) in fields.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offsets, offsets + size]}
        offsets += size
    about = json.dumps({"version": VERSION, "attrs": attrs})
    header = json.dumps({"__metadata__": {KEY: about}} | entries).encode()
    return len(header).to_bytes(8, "little") + header + data.ljust(offsets if offsets < 99 else 0, b"\0")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"hift/wav": ("F32", [2**40], 2**42)}, "cannot be read"),
        ({"hift/wav": ("F32", [2**33, 2**33], 0)}, "cannot be read"),
        ({"hift/wav": ("F32", [-1], 0)}, "cannot be read"),
        ({"flow/x": ("F32", [2**30, 0, 2**30], 0)}, "1073741824 entries"),  # no byte, and a loop without end
        ({"hift/wav": ("F8_E4M3", [2], 2)}, "hift/wav is float8"),
        ({"hift/wav": ("C64", [2], 16)}, "hift/wav is complex64"),
        ({"flow/x.stats": ("F64", [1, 2, 3], 48)}, "region: 3, stat: 6"),
    ],
)
def test_impossible_fields_are_refused_in_little_memory(tmp_path, fields, match):
    (tmp_path / "bad").write_bytes(safetensors_of(fields, {}))
    tracemalloc.start()
    try:
        with pytest.raises(WorkbenchError, match=match):
            Trace.load(tmp_path / "bad")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "attrs",
    [
        {"prompt_frames": "4"},
        {"prompt_frames": -3},
        {"prompt_frames": 10**30},
        {"sample_rate": 0},
        {"sample_rate": "24000"},
        {"options": 3},
        {"checkpoint": []},
        {"timings": []},
        {"text": 4},
        {"shapes": [1]},
        {"half_units": [1]},
        {"notes": 4},
    ],
)
def test_attributes_of_wrong_type_or_range_are_refused(tmp_path, attrs):
    (tmp_path / "bad").write_bytes(safetensors_of({}, attrs))
    with pytest.raises(WorkbenchError, match=next(iter(attrs))):
        Trace.load(tmp_path / "bad")


def test_a_file_without_attributes_loads_with_defaults(tmp_path):
    (tmp_path / "bare").write_bytes(safetensors_of({"lm/speech_token": ("U32", [3], 12)}, {}, b"\7\0\0\0"))
    bare = Trace.load(tmp_path / "bare")
    assert bare["lm/speech_token"].tolist() == [7, 0, 0] and bare["lm/speech_token"].dtype == torch.int64
    assert bare.sample_rate == 24000 and bare.rtf == 0 and "1 fields" in repr(bare)


@settings(
    max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10_000), with_=st.binary(min_size=1, max_size=12))
def test_damaged_files_give_a_trace_or_an_error(trace, tmp_path, at, with_):
    path = trace.save(tmp_path / "run")
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(with_)] = with_
    path.write_bytes(bytes(data))
    with contextlib.suppress(WorkbenchError):
        assert "fields" in Trace.load(path)._repr_html_()


def test_summarise_counts_nonfinite_values_and_leaves_them_out():
    x = torch.tensor([-3.0, 1.0, float("nan"), float("inf")])
    assert summarise(x).tolist() == [-3.0, 1.0, -1.0, 2.0, 5**0.5, 2.0]
    assert summarise(torch.full((3,), 60000.0, dtype=torch.float16))[2] == 60000  # no overflow on the way
    nothing = summarise(torch.full((2,), torch.nan))
    assert nothing[:5].isnan().all() and nothing[5] == 2
    assert summarise(torch.zeros(0))[5] == 0


def test_recorded_statistics_equal_those_of_the_field(trace):
    recorder = Recorder(SUMMARY)
    for x in trace["flow/x"]:
        recorder.add("flow/x", x, prompt_frames=2)
    recorder.add("flow/spks", torch.arange(80.0))
    kept = Trace(recorder.finish(), ABOUT)
    assert set(kept) == {"flow/x.stats", "flow/spks.stats"}
    assert kept.stats("flow/x").equals(trace.stats("flow/x"))
    row = kept.stats("flow/x").loc[3, "target"]
    assert row["max"] == pytest.approx(float(trace["flow/x"][3, :, 2:].max()))
    assert list(kept.stats("flow/spks").columns) == list(STATS)
    assert torch.equal(whole_stats(kept, "flow/x", 3), whole_stats(trace, "flow/x", 3))
    a, b = (t.to_frame().loc[n, list(STATS)] for t, n in ((kept, "flow/x.stats"), (trace, "flow/x")))
    assert a.to_list() == pytest.approx(b.to_list())


def test_statistics_that_were_not_recorded_are_nan():
    stats = torch.full((2, 3, 6), torch.nan, dtype=torch.float64)
    stats[1, 2, 1] = 4.5  # the largest value of the whole, at knot 1
    trace = Trace({"flow/x.stats": stats}, ABOUT)
    table = trace.stats("flow/x")
    assert (
        table.loc[(1, "whole"), "max"] == 4.5 and table["max"].count() == 1 and not table["nonfinite"].count()
    )
    row = trace.to_frame().loc["flow/x.stats"]
    assert row["max"] == 4.5 and row[["min", "mean", "nonfinite"]].isna().all()


def test_globs_choose_which_fields_are_kept():
    assert not NOTHING.keeps("flow/x") and NOTHING.keeps("flow/mel") and NOTHING.keeps("in/text_token")
    assert EVERYTHING.keeps("lm/logp") and not EVERYTHING.keeps_stats("flow/x")
    assert as_save("flow/v*").keeps("flow/velocity") and not as_save(("flow/v*", "lm/*")).keeps("flow/x")
    with pytest.raises(WorkbenchError, match="flow/nothing"):
        as_save("flow/nothing*")


def test_taps_record_outputs_and_remove_their_hooks():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x = torch.ones(4, 2)
    with taps(net, "[02]") as seen:
        net(x)
        net(2 * x)
    net(x)
    assert set(seen) == {"0", "2"} and [len(v) for v in seen.values()] == [2, 2]
    assert torch.equal(seen["0"][0], net[0](x))
    with pytest.raises(WorkbenchError, match="conv"), taps(net, "conv*"):
        pass
    with pytest.raises(RuntimeError), taps(net, "0"):
        net(torch.ones(4, 5))
    assert not net[0]._forward_hooks


def test_ids_that_were_kept_as_floats_become_integers():
    token = Trace({"lm/speech_token": torch.tensor([236.0, 8.0])}, {})["lm/speech_token"]
    assert token.dtype == torch.int64 and token.tolist() == [236, 8]
    for wrong in (1.5, float("nan"), 1e300):
        with pytest.raises(WorkbenchError, match="no whole numbers; expected ids"):
            Trace({"lm/speech_token": torch.tensor([wrong], dtype=torch.float64)}, {})


def test_fields_and_statistics_without_entries_are_told_as_unknown():
    trace = Trace({"flow/x": torch.zeros(0, 80, 5), "flow/velocity.stats": torch.zeros(0, 3, 6)}, {})
    assert trace.statistics("flow/x").shape == (0, 3, 6) and len(trace.stats("flow/x")) == 0
    assert trace.to_frame().loc["flow/velocity.stats", ["min", "max", "mean"]].isna().all()


def test_counts_too_large_for_any_tensor_are_unknown():
    stats = torch.full((3, 6), 1e300, dtype=torch.float64)
    assert Trace({"flow/mu.stats": stats}, {}).stats("flow/mu")["nonfinite"].isna().all()


@pytest.mark.parametrize(
    ("attrs", "match"),
    [
        ({"sample_rate": 1e9}, "sample_rate is 1000000000.0; expected 100 to 1,000,000 Hz"),
        ({"sample_rate": 1e-9}, "sample_rate is 1e-09"),
        ({"timings": {"lm": "fast"}}, "timings holds 'fast'; expected int or float"),
        ({"timings": {"lm": True}}, "timings holds True"),
        ({"seams": ["a"]}, "seams holds 'a'; expected int"),
        ({"notes": [3]}, "notes holds 3; expected str"),
    ],
)
def test_odd_attributes_are_refused(tmp_path, attrs, match):
    path = Trace({"flow/spks": torch.zeros(80)}, attrs).save(tmp_path / "odd.trace")
    with pytest.raises(WorkbenchError, match=match):
        Trace.load(path)


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    path = Trace({"flow/spks": torch.zeros(80)}, {"text": "a\ud800b"}).save(tmp_path / "odd.trace")
    assert Trace.load(path).attrs["text"] == "a?b"


def test_a_file_that_cannot_be_written_is_told_in_words(tmp_path):
    trace = Trace({"flow/spks": torch.zeros(80)}, {})
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("folder", "n" * 240, "file/inside.trace"):
        with pytest.raises(WorkbenchError, match="could not be written"):
            trace.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_is_told_in_words(tmp_path, monkeypatch):
    def save_to_full_disk(data, draft, metadata):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("workbench.trace.trace.save_file", save_to_full_disk)
    with pytest.raises(WorkbenchError, match=r"could not be written .*No space left"):
        Trace({"flow/spks": torch.zeros(80)}, {}).save(tmp_path / "full.trace")
    assert list(tmp_path.iterdir()) == []
