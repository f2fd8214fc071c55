"""The registry and the text form of variants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.spec import SpecError
from profiler.errors import StudyError
from profiler.variants import registry
from profiler.variants.base import Variant
from profiler.variants.int8_static import Int8Static
from profiler.variants.prune import PruneMagnitude

NEEDED = {"prune-magnitude": "prune-magnitude{sparsity=0.5}", "external": "external{path=other.onnx}"}
"""Variants with an option that has no default."""


@pytest.mark.parametrize("name", registry.names())
def test_every_registered_variant_keeps_the_contract(name):
    """Each line of the registry leads to a Variant whose bare text is its name or says which option it needs."""
    text = NEEDED.get(name, name)

    variant = registry.make(text)

    assert isinstance(variant, Variant)
    assert text == variant.text
    assert type(variant).name == name


@pytest.mark.parametrize("effort", ["quick", "default", "thorough"])
def test_default_variants_are_canonical_and_start_with_the_reference(effort):
    """What a study without variants gets parses, prints as itself, and holds no variant twice."""
    texts = registry.default_variants(effort)

    assert texts[0] == "fp32"
    assert len(set(texts)) == len(texts)
    assert list(texts) == [registry.make(text).text for text in texts]


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("int8-static{per_channel=false}", "int8-static"),
        ("int8-static{per_channel=true,calibration=entropy}", "int8-static{calibration=entropy,per_channel=true}"),
        ("int8-static{op_types=Conv|Add}", "int8-static{op_types=Conv|Add}"),
        ("prune-magnitude{scope=layer,sparsity=0.50}", "prune-magnitude{scope=layer,sparsity=0.5}"),
        ("int4-weight{block_size=64}", "int4-weight{block_size=64}"),
        ("int8-static{calibration=percentile,percentile=99.9}", "int8-static{calibration=percentile,percentile=99.9}"),
    ],
)
def test_the_text_holds_what_differs_from_the_defaults_and_parses_back(given, canonical):
    """Two ways to write one recipe have one text, and the text gives the recipe again."""
    variant = registry.make(given)

    assert canonical == variant.text
    assert variant == registry.make(variant.text)


def test_options_arrive_with_their_types():
    """Text becomes bool, float, choice and names."""
    assert Int8Static(calibration="entropy", per_channel=True, op_types=("Conv",), samples=7) == registry.make(
        "int8-static{calibration=entropy,per_channel=true,op_types=Conv,samples=7}"
    )
    assert PruneMagnitude(sparsity=0.25) == registry.make("prune-magnitude{sparsity=0.25}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int8-statik", "Did you mean int8-static"),
        ("int8-static{perchannel=true}", "Did you mean per_channel"),
        ("int8-static{per_channel=yes}", "got 'yes', expected true or false"),
        ("int8-static{calibration=kl}", "expected one of: minmax, entropy, percentile"),
        ("int8-static{samples=many}", "expected a whole number"),
        ("int8-static{samples=0}", "is 0, expected at least 1"),
        ("int8-static{samples=1_000}", "expected a whole number"),
        ("int8-static{percentile=99}", "expected calibration=percentile beside it"),
        ("int8-static{op_types=|}", "expected names joined by"),
        ("int8-static:GPU", "devices belong to backends"),
        ("prune-magnitude", r"needs option 'sparsity', e\.g\. prune-magnitude\{sparsity=0\.5\}"),
        ("prune-magnitude{sparsity=1}", "expected a number above 0 and below 1"),
        ("prune-magnitude{sparsity=nan}", "expected a number"),
        ("int4-weight{block_size=48}", "a power of two"),
        ("fp32{x=1}", "Known: none"),
    ],
)
def test_a_wrong_text_is_answered_with_what_was_expected(text, words):
    """Each slip names the option, what came and what is possible."""
    with pytest.raises(StudyError, match=words):
        registry.make(text)


def test_a_text_that_does_not_parse_is_a_spec_error():
    """The grammar is the one of backends.spec."""
    with pytest.raises(SpecError):
        registry.make("int8-static{")


def test_unknown_efforts_are_named():
    """An effort that does not exist is answered with those that do."""
    with pytest.raises(StudyError, match="default"):
        registry.default_variants("fast")


def test_only_bf16_is_tied_to_a_backend():
    """A recipe that only one backend can run says so before anything is made."""
    tied = {name: registry.make(NEEDED.get(name, name)).only_backends for name in registry.names()}

    assert {name: only for name, only in tied.items() if only} == {"bf16": ("ov",)}
    assert registry.make("bf16").backend_options == {"ov": {"precision": "bf16"}}


def test_asking_the_registry_imports_no_runtime_and_no_torch():
    """`edgeprof variants` must answer at once, and quantizing must not drag torch in."""
    code = (
        "import sys; from profiler.variants import registry;"
        "[registry.make(t) for t in registry.default_variants('thorough')];"
        "print([m for m in ('onnxruntime', 'torch', 'onnxslim', 'openvino') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]

    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
