"""How formats and rules of quantised weights are written, kept in options, and refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

import workbench as wb
from tests.profiles import examples
from workbench.speech.config import NAMES
from workbench.speech.config.formats import format_of, rules_of, rules_of_stage, rules_text

LAYERS = ("lm.llm_decoder", "lm.llm.model.layers.0.mlp.up_proj", "flow.decoder.proj_out", "hift.conv_pre")


def formats(weights, names=LAYERS):
    """The format of each layer as text; None where none is given."""
    found = [format_of(rules_of(rules_text(weights)), name) for name in names]
    return [None if each is None else str(each) for each in found]


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ("q4_k", "*=q4_k"),
        ("int4:asymmetric,group=64", "*=int4:group=64,asymmetric"),
        ({"lm": "Q4_K", "flow.*": "int8"}, "lm=q4_k;flow.*=int8:channel"),
        ("lm=q4_k; flow.decoder = q8_0", "lm=q4_k;flow.decoder=q8_0"),
        ("int4:group=32;lm=mlx4:group=32", "*=int4:group=32;lm=mlx4:group=32"),
        (None, None),
    ],
)
def test_options_keep_weights_as_one_line(weights, line):
    options = wb.Options(weights=weights)
    assert options.weights == line
    assert options.but(n_timesteps=4).weights == line and wb.Options(weights=line) == options


def test_the_last_rule_that_matches_counts():
    assert formats({"*": "q4_k", "lm": "q8_0", "*.up_proj": "float16"}) == ["q8_0", "float16", "q4_k", "q4_k"]
    assert formats({"*.up_proj": "float16", "lm": "q8_0"}) == ["q8_0", "q8_0", None, None]


def test_a_glob_matches_a_layer_or_a_module_around_it():
    assert formats({"lm.llm": "q8_0"}) == [None, "q8_0", None, None]
    assert formats({"lm.llm.model.layers.[0-3]": "q8_0"}) == [None, "q8_0", None, None]
    assert formats({"lm.llm_decoder.weight": "q8_0"}) == ["q8_0", None, None, None]
    assert formats({"*.conv_pre": "q8_0"}) == [None, None, None, "q8_0"]


def test_a_stage_gets_the_rules_that_may_concern_it():
    options = wb.Options(weights={"*": "q4_k", "lm": "q8_0", "flow.decoder.*": "int8"})
    assert options.weights_of("hift") == "*=q4_k"
    assert options.weights_of("lm") == options.of_stage("lm")["weights"] == "*=q4_k;lm=q8_0"
    assert wb.Options(weights={"lm.*": "q8_0"}).weights_of("flow") is None


@given(glob=strategies.text("lmfowhit.*?_0", min_size=1, max_size=12))
@settings(max_examples=examples(300), deadline=None)
def test_no_rule_that_matches_is_taken_from_a_stage(glob):
    line = rules_text({glob: "q8_0"})
    for name in (*LAYERS, "lm.0", "flow.l", "hift.m"):
        stage = name.split(".")[0]
        own = rules_of_stage(line, stage)
        assert formats(line, [name]) == (formats(own, [name]) if own else [None])
    assert all(rules_of_stage(line, stage) in (None, line) for stage in NAMES)


def test_a_toml_file_is_read_in_its_order(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text('"*" = "q4_k"\nflow.decoder = "q8_0"  # without quotes\n"lm.llm_decoder" = "float16"\n')
    assert wb.Options(weights=path).weights == "*=q4_k;flow.decoder=q8_0;lm.llm_decoder=float16"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('"lm" = ', "no TOML"),
        ("", "is empty"),
        ("lm = 4", "'lm' is 4"),
        ('lm = ["q4_k"]', "expected lines such as"),
        ('lm = "q4_x"', "did you mean q4_k"),
        ('"l m" = "q4_k"', "glob 'l m'"),
        ("a." * 2000 + 'a = "q4_k"', "expected lines such as"),
        ("a = " + "[" * 100_000, "no TOML"),
    ],
)
def test_a_file_of_other_content_is_refused_in_words(tmp_path, content, said):
    path = tmp_path / "map.toml"
    path.write_text(content)
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.Options(weights=path)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (4, "weights is 4"),
        ([["lm", "q4_k"]], "expected a format such as"),
        ("", "0 globs"),
        ("map.toml", "given as Path"),
        ({}, "0 globs"),
        ({"lm": 4}, "expected text"),
        ({3: "q4_k"}, "glob 3"),
        ({"lm;x": "q4_k"}, "glob"),
        ({"lm": "q4_k;flow=q8_0"}, "no format"),
        ("lm=q4_k;flow", "no format"),
        (Path("missing.toml"), "cannot be read"),
        ({f"lm.{i}": "q4_k" for i in range(5000)}, "5000 globs"),
        ({"l" * 400: "q4_k"}, "glob"),
    ],
)
def test_other_weights_are_refused_in_words(weights, said):
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.Options(weights=weights)
