"""`storage.py`: the form in which numbers were stored is recognised, and explains no more than it may."""

import pytest
import torch

from workbench.trace.storage import beyond_storage, coarse_fields, perturbed, storage_of
from workbench.trace.trace import Trace


def values(count=2000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def printed(x, form):
    return torch.tensor([float(form.format(value)) for value in x.tolist()])


FORMS = {
    "float16": lambda x: x.half().float(),
    "bfloat16": lambda x: x.bfloat16().float(),
    "16 bit": lambda x: (x * 32768).round() / 32768,
    "24 bit": lambda x: (x.double() * 2**23).round().div(2**23).float(),
    "3 decimals": lambda x: printed(x, "{:.3f}"),
    "4 digits": lambda x: printed(x, "{:.4g}"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5])
def test_each_form_is_recognised_at_any_scale(name, scale):
    limited = (values() * scale).clamp(-0.99, 0.99)
    assert storage_of(FORMS[name](limited)).name == name


@pytest.mark.parametrize("least", [2.0, 4.0, 100.0])
def test_large_float32_values_are_in_full_float32(least):
    """They have fewer bits behind the point: values from 4 to 8 are multiples of 2**-21."""
    assert storage_of(values().abs() + least) is None
    assert storage_of(-least * (1 + values().abs())) is None


def test_samples_divided_by_32767_are_16_bit():
    assert storage_of((values() * 5000).round() / 32767).name == "16 bit"


def test_quiet_16_bit_samples_are_not_taken_for_float16():
    assert storage_of((values() * 300).round() / 32768).name == "16 bit"


def test_a_few_values_have_the_form_of_the_other_fields():
    t = torch.linspace(0, 1, 11).cos()
    trace = Trace(
        {"flow/t": FORMS["3 decimals"](t), "flow/mel": FORMS["3 decimals"](values(800)).reshape(80, 10)}, {}
    )
    assert {name: storage.name for name, storage in coarse_fields(trace).items()} == {
        "flow/t": "3 decimals",
        "flow/mel": "3 decimals",
    }
    full = Trace({"flow/t": t, "flow/mel": trace["flow/mel"]}, {})
    assert list(coarse_fields(full)) == ["flow/mel"]


@pytest.mark.parametrize(
    "x",
    [
        values(),
        values().double(),
        torch.zeros(500),
        torch.linspace(0, 1, 11),
        torch.arange(100),
        values(7).half(),
    ],
    ids=["float32", "float64", "zeros", "few tenths", "ids", "too few"],
)
def test_full_precision_ids_and_few_values_have_no_form(x):
    assert storage_of(x) is None


@pytest.mark.parametrize("name", FORMS)
def test_rounding_to_the_form_is_explained_and_twice_as_much_is_not(name):
    exact = values() * 0.1
    stored = FORMS[name](exact)
    storage = storage_of(stored)
    assert torch.allclose(beyond_storage(stored, exact, storage).double(), exact.double(), rtol=0, atol=1e-9)
    rest = beyond_storage(stored, exact + 2 * storage.spacing_at(stored).float(), storage)
    assert (rest - exact.double()).abs().max() > 0


def test_cutting_towards_zero_is_explained_like_rounding():
    exact = values() * 0.1
    cut = (exact * 32768).trunc() / 32768
    assert torch.allclose(beyond_storage(cut, exact, storage_of(cut)), exact.double(), rtol=0, atol=1e-9)


def test_perturbed_values_stay_within_one_spacing():
    stored = FORMS["float16"](values())
    storage = storage_of(stored)
    changed = perturbed(stored, storage, torch.Generator().manual_seed(0))
    distance = (changed.double() - stored.double()).abs()
    assert distance.max() > 0 and (distance <= 1.001 * storage.spacing_at(stored)).all()


def test_fields_of_a_trace_are_told_apart():
    trace = Trace({"flow/mel": values(800).reshape(80, 10).half(), "hift/wav": values(4800)}, {})
    assert {name: storage.name for name, storage in coarse_fields(trace).items()} == {"flow/mel": "float16"}
