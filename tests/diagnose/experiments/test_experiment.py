"""An experiment runs what its variants do not share, and its table has a row for every run.

Also here: the cache of stages, and the metrics.
"""

import math
from dataclasses import fields

import pytest
import torch

import workbench as wb
from tests.diagnose.experiments.common import SHORT
from workbench.diagnose.experiments.cached_runs import CachedRuns, content_key
from workbench.diagnose.experiments.experiment import Experiment
from workbench.diagnose.experiments.metrics import mel_l1, seconds, sound_db, worst_100ms, worst_place
from workbench.errors import WorkbenchError
from workbench.speech.config import STAGES, Options
from workbench.trace.schema import SAMPLE_RATE
from workbench.trace.trace import Trace


def watched_loops(pipe):
    """Return the pipeline, and a list that gets the name of every loop that it runs."""
    seen = []

    def bar(steps, name, unit, total=None):
        seen.append(name)
        return steps

    return pipe.watched(bar), seen


def test_every_option_belongs_to_a_stage():
    known = {name for stage in STAGES.values() for name in stage.options}
    assert {field.name for field in fields(Options)} == known | {"stream_final_offline"}


@pytest.mark.slow
def test_a_stage_runs_once_for_all_that_share_it(pipe, utt):
    watched, seen = watched_loops(pipe)
    runs = CachedRuns(watched)
    base = pipe.checkpoint.options.but(n_timesteps=2, **SHORT)
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


def test_stages_in_a_folder_are_found_by_another_object(pipe, utt, tmp_path):
    options = pipe.checkpoint.options.but(n_timesteps=2, **SHORT)
    first = CachedRuns(pipe, folder=tmp_path).run(utt, options)
    watched, seen = watched_loops(pipe)
    again = CachedRuns(watched, folder=tmp_path).run(utt, options)
    assert not seen and torch.equal(first.wav, again.wav)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(CachedRuns(watched, folder=tmp_path).run(utt, options).wav, first.wav) and seen


def test_cache_in_memory_is_bounded(pipe, utt):
    runs = CachedRuns(pipe, max_stages=3)
    for steps in (1, 2):
        runs.run(utt, pipe.checkpoint.options.but(n_timesteps=steps, **SHORT))
    assert len(runs._cache) == 3


def test_content_key_depends_on_values_names_dtypes_and_shapes():
    x = torch.arange(6.0)
    given = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.double()}, {"a": x + 1}]
    assert len({content_key("run", tensors) for tensors in given}) == len(given)
    assert content_key("run", {"a": x.view(2, 3).T}) == content_key("run", {"a": x.view(2, 3).T.contiguous()})


@pytest.mark.slow
def test_table_is_tidy_and_keeps_what_failed(pipe, utt):
    variants = {
        "two": SHORT | {"n_timesteps": 2},
        "one": SHORT | {"n_timesteps": 1},
        "lost": SHORT | {"estimator": "nowhere.onnx"},
    }
    table = Experiment(pipe, {"u": utt}, variants, "two", seeds=(1, 2)).run()
    assert len(table) == 6 and list(table["variant"][:3]) == list(variants)
    rows = table.set_index(["variant", "seed"])
    assert rows.loc[("two", 1), "mel_l1"] == 0 and rows.loc[("one", 2), "mel_l1"] > 0.05
    assert rows.loc[("lost", 1), "error"] and rows.loc[("lost", 1), ["mel_l1", "seconds"]].isna().all()


def test_bad_arguments_are_refused_before_anything_runs(pipe, utt):
    with pytest.raises(WorkbenchError, match="reference"):
        Experiment(pipe, {"u": utt}, {"a": {}}, reference="b")
    with pytest.raises(WorkbenchError, match="n_timesteps"):
        Experiment(pipe, {"u": utt}, {"a": {"n_timesteps": 0}})


def test_metrics_are_nan_without_anything_to_compare():
    mel = torch.zeros(80, 10)
    bump = mel.clone()
    bump[:, 3:5] = 1.0
    one, other = Trace({"flow/mel": mel}, {}), Trace({"flow/mel": bump}, {})
    assert mel_l1(other, one) == pytest.approx(0.2) and worst_100ms(other, one) == pytest.approx(0.4)
    shorter = Trace({"flow/mel": mel[:, :5]}, {})
    assert mel_l1(shorter, one) != mel_l1(shorter, one) and worst_100ms(one) != worst_100ms(one)


def test_worst_place_is_where_the_sound_differs():
    wav = 0.1 * torch.sin(torch.arange(SAMPLE_RATE) * 0.1)
    other = wav.clone()
    other[12000:13000] = 0
    one, changed = (wb.Trace({"hift/wav": x}, {"sample_rate": SAMPLE_RATE}) for x in (wav, other))
    place = worst_place(changed, one).iloc[0]
    assert (
        place["start"] <= 0.5 and place["end"] >= 0.54 and place["end"] - place["start"] == pytest.approx(0.1)
    )
    assert place["score"] > sound_db(changed, one) > 0
    assert worst_place(one, one).empty and sound_db(one, one) == 0
    shorter = wb.Trace({"hift/wav": wav[:9000]}, {})
    assert worst_place(shorter, one).empty and math.isnan(sound_db(shorter, one))


@pytest.mark.slow
def test_a_group_is_one_batch(pipe, utt, tmp_path):
    changes = SHORT | {"compute": "exact", "n_timesteps": 2}
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
def test_a_run_that_fails_in_a_batch_affects_only_its_own_row(pipe, utt):
    """The batch fails with it; the other runs are then computed one by one."""
    changes = SHORT | {"compute": "exact", "n_timesteps": 1}
    variants = {"good": changes, "hot": changes | {"temperature": 1.5}}
    variants["no file"] = changes | {"estimator": "missing.onnx"}
    table = Experiment(pipe, {"a": utt}, variants, metrics={"length": seconds}).run().set_index("variant")
    assert "missing.onnx" in table.error["no file"]
    assert (table.error.drop("no file") == "").all() and (table.length.drop("no file") > 0).all()


def test_an_experiment_says_what_it_is(pipe, utt):
    variants = {"two": {"n_timesteps": 2}, "<one>": {"n_timesteps": 1, "cfg_rate": 0.5}}
    experiment = Experiment(pipe, {"u": utt}, variants, reference="two", seeds=(1, 2, 3))
    assert repr(experiment) == "Experiment of 2 variants x 1 utterance x 3 seeds, compared with 'two'"
    html = experiment._repr_html_()
    assert "&lt;one&gt;" in html and "cfg_rate" in html and "n_timesteps" in html
    assert repr(Experiment(pipe, {}, {"own": {}})) == "Experiment of 1 variant x 0 utterances x 1 seed"
    assert "own" in Experiment(pipe, {}, {"own": {}})._repr_html_()


def test_a_folder_that_cannot_be_made_is_told_in_words(pipe, utt, tmp_path):
    (tmp_path / "file").write_text("")
    experiment = Experiment(pipe, {"a": utt}, {"one": SHORT}, metrics={}, folder=tmp_path / "file" / "inside")
    with pytest.raises(wb.WorkbenchError, match=r"inside.* cannot be written"):
        experiment.run()
