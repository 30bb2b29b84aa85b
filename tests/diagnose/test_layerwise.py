"""Models that widen one layer at a time give what models in float64 give, and hold no weights between two passes."""

import gc
import weakref

import pytest
import torch

import workbench as wb
from workbench.diagnose import layerwise as module
from workbench.diagnose.layerwise import layerwise, widened
from workbench.diagnose.suspects.catalogue.faults import applied
from workbench.diagnose.suspects.catalogue.kinds import faults_of_kinds

WIDE = {"lm_dtype": "float64", "flow_dtype": "float64"}


@pytest.fixture
def every_size(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 0)


@pytest.mark.parametrize("weights", [None, "lm=q8_0;flow=int8"])
def test_results_are_those_of_whole_models_to_the_last_bit(pipe, utt, every_size, weights):
    options = pipe.options(None, seed=7).but(n_timesteps=2, max_tokens=6, weights=weights, **WIDE)
    whole = pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
    made = layerwise(pipe).synthesise(utt, options=options, save=wb.EVERYTHING)
    assert list(made) == list(whole) and all(torch.equal(made[name], whole[name]) for name in whole)


def test_weights_have_memory_while_their_layer_computes_alone(voice):
    model = voice.build("flow")
    wide = widened(model)
    assert all(value.isnan().all() for value in wide.parameters())
    assert {value.dtype for value in wide.parameters()} == {torch.float64}
    assert sum(value.untyped_storage().nbytes() for value in wide.parameters()) < 10_000
    layer, narrow = wide.spk_embed_affine_layer, model.spk_embed_affine_layer
    seen = []
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append(layer.weight.clone()))
    x = torch.randn(2, layer.in_features, dtype=torch.float64)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, narrow.weight.double(), narrow.bias.double()))
    assert torch.equal(seen[0], narrow.weight.double()) and layer.weight.isnan().all()
    with pytest.raises(RuntimeError):  # a layer that fails keeps none either
        layer(torch.randn(2, 3))
    assert layer.weight.isnan().all()


def test_a_simulated_fault_has_a_model_of_its_own(pipe, every_size):
    double = layerwise(pipe)
    before = double.stage("flow", "float64")
    fault = next(one for one in faults_of_kinds(pipe) if one.name.startswith("bias-missing(decoder"))
    with applied((fault,)):
        assert double.stage("flow", "float64") is not before
    assert double.stage("flow", "float64") is before


def test_models_go_with_their_pipeline(voice):
    gc.disable()
    try:
        pipe = wb.Pipeline(voice, progress=False)
        pipe.noise(10, voice.options.but(noise_seed=3))
        model = weakref.ref(pipe.stage("flow", "float32"))
        del pipe
        assert model() is None
    finally:
        gc.enable()
