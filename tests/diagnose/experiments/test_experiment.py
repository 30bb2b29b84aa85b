import math
from dataclasses import fields

import pytest
import torch

import workbench as wb
from workbench.diagnose.experiments.cached_runs import CachedRuns, content_key
from workbench.diagnose.experiments.experiment import Experiment
from workbench.diagnose.experiments.metrics import mel_l1, seconds, sound_db, worst_100ms, worst_place
from workbench.errors import WorkbenchError
from workbench.speech.config import STAGES, Options
from workbench.trace.trace import Trace


def counted(pipe):
    """The pipeline, and the names of the loops that it ran."""
    seen = []

    def bar(steps, name, unit, total=None):
        seen.append(name)
        return steps

    return pipe.watched(bar), seen


def test_every_option_has_its_stage():
    known = {name for stage in STAGES.values() for name in stage.options}
    assert {field.name for field in fields(Options)} == known | {"stream_final_offline"}


@pytest.mark.slow
def test_a_stage_runs_once_for_all_that_share_it(pipe, utt):
    watched, seen = counted(pipe)
    runs = CachedRuns(watched)
    base = pipe.checkpoint.options.but(n_timesteps=2, max_tokens=8)
    plain = runs.run(utt, base)
    half = runs.run(utt, base.but(head_dtype="float16"))
    stronger = runs.run(utt, base.but(cfg_rate=1.0))
    again = runs.run(utt, base)
    assert seen == ["LM", "flow", "flow"]
    assert torch.equal(plain["flow/mel"], half["flow/mel"]) and not torch.equal(plain.wav, half.wav)
    assert not torch.equal(plain["flow/mel"], stronger["flow/mel"])
    assert torch.equal(plain.wav, again.wav) and again.attrs["options"]["cfg_rate"] == base.cfg_rate
    direct = pipe.synthesise(utt, options=base)
    assert list(direct) == list(plain) and all(torch.equal(direct[name], plain[name]) for name in direct)
    assert direct.attrs.keys() <= plain.attrs.keys()


def test_a_folder_outlives_the_session(pipe, utt, tmp_path):
    options = pipe.checkpoint.options.but(n_timesteps=2, max_tokens=8)
    first = CachedRuns(pipe, folder=tmp_path).run(utt, options)
    watched, seen = counted(pipe)
    again = CachedRuns(watched, folder=tmp_path).run(utt, options)
    assert not seen and torch.equal(first.wav, again.wav)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(CachedRuns(watched, folder=tmp_path).run(utt, options).wav, first.wav) and seen


def test_memory_is_bounded(pipe, utt):
    runs = CachedRuns(pipe, max_stages=3)
    for steps in (1, 2):
        runs.run(utt, pipe.checkpoint.options.but(n_timesteps=steps, max_tokens=8))
    assert len(runs._cache) == 3


def test_key_depends_on_values_names_types_and_shapes():
    x = torch.arange(6.0)
    given = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.double()}, {"a": x + 1}]
    assert len({content_key("run", tensors) for tensors in given}) == len(given)
    assert content_key("run", {"a": x.view(2, 3).T}) == content_key("run", {"a": x.view(2, 3).T.contiguous()})


@pytest.mark.slow
def test_table_is_tidy_and_keeps_what_failed(pipe, utt):
    variants = {
        "two": {"n_timesteps": 2, "max_tokens": 8},
        "one": {"n_timesteps": 1, "max_tokens": 8},
        "lost": {"max_tokens": 8, "estimator": "nowhere.onnx"},
    }
    table = Experiment(pipe, {"u": utt}, variants, "two", seeds=(1, 2)).run()
    assert len(table) == 6 and list(table["variant"][:3]) == list(variants)
    rows = table.set_index(["variant", "seed"])
    assert rows.loc[("two", 1), "mel_l1"] == 0 and rows.loc[("one", 2), "mel_l1"] > 0.05
    assert rows.loc[("lost", 1), "error"] and rows.loc[("lost", 1), ["mel_l1", "seconds"]].isna().all()


def test_nothing_runs_when_it_was_asked_wrongly(pipe, utt):
    with pytest.raises(WorkbenchError, match="reference"):
        Experiment(pipe, {"u": utt}, {"a": {}}, reference="b")
    with pytest.raises(WorkbenchError, match="n_timesteps"):
        Experiment(pipe, {"u": utt}, {"a": {"n_timesteps": 0}})


def test_measures_know_when_there_is_nothing_to_compare():
    mel = torch.zeros(80, 10)
    bump = mel.clone()
    bump[:, 3:5] = 1.0
    one, other = Trace({"flow/mel": mel}, {}), Trace({"flow/mel": bump}, {})
    assert mel_l1(other, one) == pytest.approx(0.2) and worst_100ms(other, one) == pytest.approx(0.4)
    shorter = Trace({"flow/mel": mel[:, :5]}, {})
    assert mel_l1(shorter, one) != mel_l1(shorter, one) and worst_100ms(one) != worst_100ms(one)


def test_worst_place_is_where_the_sound_differs():
    wav = 0.1 * torch.sin(torch.arange(24000) * 0.1)
    other = wav.clone()
    other[12000:13000] = 0
    one, changed = (wb.Trace({"hift/wav": x}, {"sample_rate": 24000}) for x in (wav, other))
    place = worst_place(changed, one).iloc[0]
    assert (
        place["start"] <= 0.5 and place["end"] >= 0.54 and place["end"] - place["start"] == pytest.approx(0.1)
    )
    assert place["score"] > sound_db(changed, one) > 0
    assert worst_place(one, one).empty and sound_db(one, one) == 0
    shorter = wb.Trace({"hift/wav": wav[:9000]}, {})
    assert worst_place(shorter, one).empty and math.isnan(sound_db(shorter, one))


@pytest.mark.slow
def test_a_block_is_one_batch(pipe, utt, tmp_path):
    changes = {"compute": "exact", "n_timesteps": 2, "max_tokens": 8}
    variants = {f"rate {rate}": changes | {"cfg_rate": rate} for rate in (0.2, 0.7, 1.5)}
    variants["eager"] = changes | {"compute": "eager"}
    experiment = Experiment(pipe, {"a": utt}, variants, "eager", {"apart": mel_l1}, folder=tmp_path)
    table = experiment.run().set_index("variant")
    assert (table.error == "").all() and table.apart["eager"] == 0
    assert table.apart["rate 0.7"] < 1e-4 < table.apart["rate 0.2"]
    for name, rows in (("rate 0.2", 3), ("rate 1.5", 3)):
        trace = experiment.trace(name, "a")
        assert trace.attrs["rows"] == {"lm": 1, "flow": rows, "hift": rows}
        assert trace.attrs["options"]["cfg_rate"] == variants[name]["cfg_rate"]
        single = pipe.synthesise(utt, options=experiment.options[name].but(seed=0))
        assert list(single) == list(trace)
        assert torch.allclose(single["flow/mel"], trace["flow/mel"], atol=1e-4)


@pytest.mark.slow
def test_what_spoils_a_batch_costs_only_its_own_row(pipe, utt):
    """A run that cannot be made ends the batch; the others are then made one by one."""
    changes = {"compute": "exact", "n_timesteps": 1, "max_tokens": 6}
    variants = {"good": changes, "hot": changes | {"temperature": 1.5}}
    variants["no file"] = changes | {"estimator": "missing.onnx"}
    table = Experiment(pipe, {"a": utt}, variants, metrics={"length": seconds}).run().set_index("variant")
    assert "missing.onnx" in table.error["no file"]
    assert (table.error.drop("no file") == "").all() and (table.length.drop("no file") > 0).all()
