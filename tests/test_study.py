"""What can be asked, and what is refused before any work is done."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import EdgeprofError, StudyError
from profiler.study import EFFORTS, MAX_CASES, Case, Study, expand, make_study, read_study, reference_case

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batches": (0,)}, "0 is not possible"),
        ({"batches": (-4,)}, "-4 is not possible"),
        ({"batches": ()}, "at least one"),
        ({"batches": (70_000,)}, "65536"),
        ({"batches": (1.5,)}, "batches"),
        ({"threads": (0,)}, "0 is not possible"),
        ({"threads": (100_000,)}, "1024"),
        ({"backends": ()}, "backend"),
        ({"targets": ()}, "target"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**40}, "seed"),
        ({"limit": 0}, "limit"),
        ({"calibration_samples": 0}, "calibration_samples"),
        ({"time_limit_s": 0}, "time_limit_s"),
        ({"time_limit_s": NAN}, "time_limit_s"),
        ({"time_limit_s": INF}, "time_limit_s"),
        ({"memory_limit_bytes": 10}, "memory_limit_bytes"),
        ({"constraints": {"max_drop": -1}}, "constraints.max_drop"),
        ({"constraints": {"max_drop": NAN}}, "constraints.max_drop"),
        ({"constraints": {"max_drop": -0.1}}, "constraints.max_drop"),
        ({"constraints": {"slo_p99_s": 0}}, "constraints.slo_p99_s"),
        ({"constraints": {"slo_p99_s": NAN}}, "constraints.slo_p99_s"),
        ({"constraints": {"max_usd_per_million": INF}}, "constraints.max_usd_per_million"),
        ({"constraints": {"max_memory_bytes": 0}}, "constraints.max_memory_bytes"),
        ({"cost": {"utilisation": 0}}, "cost.utilisation"),
        ({"cost": {"utilisation": NAN}}, "cost.utilisation"),
        ({"cost": {"utilisation": 1.1}}, "cost.utilisation"),
        ({"cost": {"lifetime_years": INF}}, "cost.lifetime_years"),
        ({"cost": {"electricity_usd_per_kwh": NAN}}, "cost.electricity_usd_per_kwh"),
        ({"cost": {"electricity_usd_per_kwh": 0}}, "cost.electricity_usd_per_kwh"),
        ({"cost": {"machine": "aws:c7i.large,pi=device:raspberry-pi-5-8gb"}}, "NAME=TYPE"),
        ({"cost": {"machine": "local=aws:c7i.large,local=aws:c7i.xlarge"}}, "a machine is named twice"),
        ({"cost": {"machine": "pi=device:raspberry-pi-5-8gb"}}, "'pi', which is no target of this run: local"),
        ({"effort": {"processes": 0}}, "effort.processes"),
        ({"effort": {"rounds": 10**9}}, "effort.rounds"),
        ({"effort": {"block_s": NAN}}, "effort.block_s"),
        ({"effort": {"block_s": 0}}, "effort.block_s"),
        ({"effort": {"warmup_s": NAN}}, "effort.warmup_s"),
        ({"effort": {"warmup_max_s": NAN}}, "effort.warmup_max_s"),
        ({"effort": "fast"}, "unknown effort 'fast'"),
        ({"input_shapes": {"x": (-3, 4)}}, "input_shapes"),
        ({"input_shapes": {"x": (0,)}}, "input_shapes"),
        ({"input_shapes": {"x": (2**40,)}}, "input_shapes"),
        ({"model": None}, "model"),
    ],
    ids=str,
)
def test_impossible_values_are_refused_by_name(fields, words):
    """Zero, negative, NaN, infinite, absurd: the message names the setting and what came."""
    with pytest.raises(StudyError) as caught:
        make_study(**{"model": "m.onnx", **fields})

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "near"),
    [
        ({"bakends": ("ort",)}, "Did you mean backends"),
        ({"effort": {"round": 3}}, "Did you mean rounds"),
        ({"cost": {"utilization": 0.5}}, "Did you mean utilisation"),
        ({"constraints": {"slo_p99": 1}}, "Did you mean slo_p99_s"),
    ],
    ids=str,
)
def test_an_unknown_setting_is_answered_with_its_near_match(fields, near):
    """At every level of the study, from the settings of that level."""
    with pytest.raises(StudyError, match=near):
        make_study(model="m.onnx", **fields)


def test_all_problems_are_told_at_once():
    """Nobody wants to mend a study one message at a time."""
    with pytest.raises(StudyError) as caught:
        make_study(model="m.onnx", seed=-1, limit=0, batches=(0,))

    assert all(word in str(caught.value) for word in ("seed", "limit", "batches"))


@pytest.mark.parametrize("text", ["int8 static", "int8{", "", "a{b}", "{x=1}", "int8-static{a=1,a=2}", "ort:", "a}b"])
def test_names_that_do_not_parse_are_refused(text):
    """Variants and backends share one text form."""
    with pytest.raises(EdgeprofError, match=r"cannot read|stands twice"):
        make_study(model="m.onnx", variants=(text,))


def test_equal_studies_have_equal_text():
    """Order of options and doubles make no difference, because names are canonical."""
    one = make_study(
        model="m.onnx",
        variants=("int8-static{per_channel=true,calibration=entropy}", "fp32", "fp32"),
        batches=(1, 1, 8),
    )
    two = make_study(
        model="m.onnx", variants=("int8-static{calibration=entropy, per_channel=true}", "fp32"), batches=[1, 8]
    )

    assert one == two
    assert one.to_json() == two.to_json()


STUDIES = st.fixed_dictionaries(
    {"model": st.text(min_size=1, max_size=10).filter(str.strip)},
    optional={
        "data": st.none() | st.text(max_size=5),
        "batches": st.lists(st.integers(1, 65_536), min_size=1, max_size=3),
        "threads": st.lists(st.integers(1, 1024), min_size=1, max_size=3),
        "variants": st.lists(st.sampled_from(["fp32", "int8-static{per_channel=true}", "graph"]), max_size=3),
        "constraints": st.fixed_dictionaries(
            {}, optional={"max_drop": st.floats(0, 1), "slo_p99_s": st.floats(1e-9, 1e9)}
        ),
        "effort": st.sampled_from(list(EFFORTS)),
        "seed": st.integers(0, 2**32 - 1),
        "input_shapes": st.dictionaries(st.text(max_size=3), st.lists(st.integers(1, 9), max_size=3), max_size=2),
    },
)


@given(STUDIES)
def test_a_study_survives_its_text(fields):
    """What the run database keeps is the study, to the last digit."""
    import json

    study = make_study(**fields)

    assert study == make_study(**json.loads(study.to_json()))


def test_a_study_file_is_read_from_its_own_folder(tmp_path):
    """Relative paths are the file's, `package.module:name` and absolute paths stay."""
    path = tmp_path / "study.toml"
    path.write_text(
        'model = "m.onnx"\ndata = "pkg.mod:rows"\ncalibration = "/abs/c.npz"\nbackends = ["ov", "ort"]\n[effort]\nrounds = 3\n'
    )
    study = read_study(path)

    assert (str(tmp_path / "m.onnx"), "pkg.mod:rows", "/abs/c.npz") == (study.model, study.data, study.calibration)
    assert (study.backends, study.effort.rounds) == (("ov", "ort"), 3)


def test_a_home_path_in_a_study_file_is_a_home_path(tmp_path, monkeypatch):
    """`~` means home, not a folder beside the study."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "study.toml").write_text('model = "~/m.onnx"')

    assert str(tmp_path / "home" / "m.onnx") == read_study(tmp_path / "study.toml").model


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"", "model"),
        (b'model = "m"\nmodel = "n"', "not valid TOML"),
        (b"model = 3", "model"),
        (b'model = "m"\nbatches = 4', "batches"),
        (b'model = "m"\n[constraints]\nmax_drop = nan', "max_drop"),
        (b'model = "m"\n[surprise]\nx = 1', "surprise"),
        (b"#" * (1 << 20) + b"#\n", "at most 1048576"),
    ],
    ids=["no value", "bytes", "empty", "twice", "number", "not a list", "nan", "table", "huge"],
)
def test_a_wrong_study_file_is_one_message(tmp_path, content, words):
    """It says what is wrong and where, without a traceback of the parser."""
    path = tmp_path / "study.toml"
    path.write_bytes(content)

    with pytest.raises(StudyError, match=words):
        read_study(path)


@pytest.mark.parametrize("place", ["missing.toml", "."])
def test_a_study_file_that_is_none_names_the_command_that_writes_one(tmp_path, place):
    """Missing, or a folder."""
    with pytest.raises(StudyError, match="edgeprof init"):
        read_study(tmp_path / place)


def test_a_study_expands_to_every_combination_with_the_reference_first():
    """Variant × backend × batch × threads, each once, and fp32 although nobody named it."""
    study = make_study(model="m", backends=("ort", "ov"), batches=(1, 8), threads=(1, 2))
    cases = expand(study, ("graph",))

    wanted = set(itertools.product(("fp32", "graph"), ("ort", "ov"), ("local",), (1, 8), (1, 2)))
    assert wanted == {(c.variant, c.backend, c.target, c.batch, c.threads) for c in cases}
    assert len(wanted) == len(cases)
    assert Case("fp32", "ort", "local", 1, 1) == cases[0]
    assert len(cases) == len({case.key for case in cases})


def test_an_absurd_number_of_cases_is_refused():
    """Before anything is made of them."""
    study = make_study(model="m", batches=tuple(range(1, 100)), threads=tuple(range(1, 100)))

    with pytest.raises(StudyError, match=f"at most {MAX_CASES}"):
        expand(study, ())


def test_the_reference_of_a_case_differs_in_variant_and_backend_only():
    """The first backend of the study; the same target, batch and threads."""
    study = make_study(model="m", backends=("ov", "ort"))

    assert Case("fp32", "ov", "local", 8, 2) == reference_case(Case("graph", "ort", "local", 8, 2), study)


def test_threads_do_not_change_answers():
    """Cases that differ in threads share a quality key, other cases do not."""
    base = Case("graph", "ort", "local", 8, 2)

    assert Case("graph", "ort", "local", 8, 4).quality_key == base.quality_key
    others = [
        Case("fp32", "ort", "local", 8, 2),
        Case("graph", "ov", "local", 8, 2),
        Case("graph", "ort", "far", 8, 2),
        Case("graph", "ort", "local", 1, 2),
    ]
    assert base.quality_key not in {case.quality_key for case in others}


def test_a_study_cannot_be_changed():
    """Frozen: what was asked stays what was asked."""
    study = make_study(model="m")

    with pytest.raises(Exception, match="frozen"):
        study.model = "n"
    assert isinstance(study, Study)


def test_a_model_made_elsewhere_lies_beside_the_study_file(tmp_path):
    """As the model and the data do; other variants are left as they are."""
    (tmp_path / "study.toml").write_text(
        'model = "m.onnx"\nvariants = ["graph+int8-dynamic", "external{path=qat.onnx}"]\n'
    )

    study = read_study(tmp_path / "study.toml")

    assert study.variants == ("graph+int8-dynamic", f"external{{path={tmp_path.resolve() / 'qat.onnx'}}}")
