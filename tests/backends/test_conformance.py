"""What every adapter promises, ours and other people's: one suite over all registered backends and all example models."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from backends import registry
from backends.base import Backend, BackendError, LoadOptions, Session, SessionFacts, check_feeds, lane

_MARKS = {"fake": (), "trt": (pytest.mark.tensorrt,)}
COMPUTES_NOTHING = {"fake"}


@pytest.fixture(
    params=[pytest.param(name, marks=_MARKS.get(name, (pytest.mark.runtime,))) for name in registry.names()]
)
def backend(request) -> Backend:
    found = registry.get(request.param)
    availability = found.availability()
    if not availability.available:
        pytest.skip(f"{request.param}: {availability.reason}")
    return found


def shapes(feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def opened(backend: Backend, example, rows: int = 3) -> tuple[Session, dict[str, np.ndarray]]:
    feeds = example.feed(rows, 1)
    return backend.load(example.path, LoadOptions(batch=rows, sample_shapes=shapes(feeds))), feeds


def computing(backend: Backend) -> Backend:
    if backend.name in COMPUTES_NOTHING:
        pytest.skip(f"{backend.name} computes nothing")
    return backend


def test_backend_and_session_satisfy_the_protocols(backend, example):
    """An adapter has all that the Protocols ask for."""
    session, _ = opened(backend, example)

    assert isinstance(backend, Backend)
    assert isinstance(session, Session)


def test_device_names_are_given_default_first(backend):
    """A backend knows at least one device, and its default is available when the backend is."""
    assert backend.availability(backend.devices()[0]).available


def test_inputs_and_outputs_are_the_model_s(backend, example):
    """Names, order, dtypes and ranks of inputs and outputs are those of the model, and its feeds pass the check."""
    session, feeds = opened(backend, example)
    answers = example.expected(feeds)
    outputs = {info.name: info for info in session.outputs}

    assert list(feeds) == [info.name for info in session.inputs]
    assert list(answers) == list(outputs)
    check_feeds(session.inputs, feeds)
    assert {k: v.dtype.name for k, v in answers.items()} == {k: v.dtype for k, v in outputs.items()}
    assert {k: v.ndim for k, v in answers.items()} == {k: len(v.shape) for k, v in outputs.items()}


@pytest.mark.parametrize("rows", [1, 3])
def test_results_are_those_of_the_reference_implementation(backend, example, rows):
    """Outputs equal onnx's reference evaluator on several feeds, for one row and for three."""
    computing(backend)
    session, _ = opened(backend, example, rows)
    for seed in range(4):
        feeds = example.feed(rows, seed)
        answers = session.infer(feeds)

        for name, expected in example.expected(feeds).items():
            assert expected.dtype == answers[name].dtype
            np.testing.assert_allclose(
                answers[name], expected, rtol=1e-4, atol=example.atol, err_msg=f"{name}, seed {seed}"
            )


def test_a_batch_is_taken_without_sample_shapes(backend, example):
    """Sample shapes are a help, not a duty."""
    session = backend.load(example.path, LoadOptions())
    feeds = example.feed(2, 1)

    assert {name: array.shape for name, array in example.expected(feeds).items()} == shapes(session.infer(feeds))


def test_outputs_are_numpy_arrays_in_a_dict(backend, example):
    """What comes back are plain numpy arrays on the host."""
    session, feeds = opened(backend, example)
    answers = session.infer(feeds)

    assert dict is type(answers)
    assert {np.ndarray} == {type(array) for array in answers.values()}


def test_a_copy_of_the_outputs_survives_the_next_inference(backend, example):
    """Outputs may be overwritten by the next call, copies may not, and the inputs are never touched."""
    session, feeds = opened(backend, example)
    fed = {name: array.copy() for name, array in feeds.items()}
    first = {name: array.copy() for name, array in session.infer(feeds).items()}
    session.infer(example.feed(3, 99))
    again = session.infer(feeds)

    for name, array in fed.items():
        np.testing.assert_array_equal(feeds[name], array)
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)


def test_non_contiguous_feeds_give_the_same_answer(backend, examples):
    """A view with strides is read as what it shows."""
    session, feeds = opened(backend, examples["mlp"])
    expected = {name: array.copy() for name, array in session.infer(feeds).items()}
    wide = np.repeat(feeds["x"], 2, axis=1)[:, ::2]
    answers = session.infer({"x": wide})

    assert not wide.flags.c_contiguous
    np.testing.assert_array_equal(expected["y"], answers["y"])


def test_two_sessions_live_side_by_side(backend, examples):
    """Sessions of two models share nothing: interleaved they answer as alone, and closing one leaves the other."""
    one, one_feeds = opened(backend, examples["mlp"])
    two, two_feeds = opened(backend, examples["conv"])
    alone = one.infer(one_feeds)["y"].copy()
    two.infer(two_feeds)
    between = one.infer(one_feeds)["y"].copy()
    two.close()
    after = one.infer(one_feeds)["y"].copy()

    np.testing.assert_array_equal(alone, between)
    np.testing.assert_array_equal(alone, after)


def test_close_twice_is_harmless(backend, example):
    """Closing is idempotent, and a closed session says so instead of crashing."""
    session, feeds = opened(backend, example)
    session.close()
    session.close()

    with pytest.raises(BackendError, match="closed"):
        session.infer(feeds)


def test_facts_are_complete(backend, example):
    """Runtime, version and provider are told; the realised precision is told or its absence explained."""
    session, _ = opened(backend, example)
    facts = session.facts

    assert isinstance(facts, SessionFacts)
    assert all((facts.runtime, facts.runtime_version, facts.provider))
    assert (facts.precision is None) == (facts.precision_reason is not None)
    assert facts.precision is None or (facts.precision and min(facts.precision.values()) > 0)
    assert facts is session.facts


def test_threads_are_those_asked_for(backend, mlp_file):
    """A backend whose device has threads uses as many as asked, not as many as there are cores."""
    facts = backend.load(mlp_file, LoadOptions(threads=2)).facts

    assert facts.threads in {2, None}


def test_int8_is_realised_where_it_is_declared(backend, examples):
    """A quantized model runs integer kernels: declared int8 that runs as float would be a published lie."""
    computing(backend)
    session, _ = opened(backend, examples["qdq"])
    if session.facts.precision is None:
        pytest.skip(f"{backend.name}: {session.facts.precision_reason}")

    assert session.facts.precision["i8"] >= 1


def test_float32_stays_float32_by_default(backend, examples):
    """The reference is fp32 on every host: no adapter lowers the precision unasked."""
    computing(backend)
    session, _ = opened(backend, examples["conv"])
    if session.facts.precision is None:
        pytest.skip(f"{backend.name}: {session.facts.precision_reason}")

    assert session.facts.precision["f32"] >= 1
    assert session.facts.precision.keys() <= {"f32", "conversion", "other"}


def test_missing_file_is_named(backend, tmp_path):
    """A model file that is not there is an error of ours that names the file."""
    with pytest.raises(BackendError, match=r"absent\.onnx"):
        backend.load(tmp_path / "absent.onnx", LoadOptions())


def test_a_file_that_is_no_model_is_refused(backend, no_model):
    """A corrupt file is a BackendError with the runtime's own words."""
    computing(backend)
    with pytest.raises(BackendError, match=r"could not load 'model\.onnx': \S+"):
        backend.load(no_model, LoadOptions())


def test_unknown_option_is_refused(backend, mlp_file):
    """A typo in an option must not measure the default under another name."""
    with pytest.raises(BackendError, match="'presicion'"):
        backend.load(mlp_file, LoadOptions(options={"presicion": "f32"}))


def test_unknown_device_is_refused(backend, mlp_file):
    """A device that the backend does not know is an error, not the default device."""
    with pytest.raises(BackendError, match="abacus"):
        backend.load(mlp_file, LoadOptions(device="abacus"))


LANES = 3


def test_lanes_at_the_same_time_answer_what_one_session_answers(backend, example):
    """Several threads, each on a lane of its own, on different rows: the same outputs as one after the other."""
    feeds = [example.feed(2, seed) for seed in range(LANES)]
    options = LoadOptions(batch=2, streams=LANES, sample_shapes=shapes(feeds[0]))
    session = backend.load(example.path, options)
    if not hasattr(session, "lane"):
        pytest.skip(f"{backend.name} has no lanes")
    expected = [{name: np.array(values) for name, values in session.infer(feed).items()} for feed in feeds]
    lanes = [session, *(lane(session) for _ in range(LANES - 1))]
    seen: list[list[dict[str, np.ndarray]]] = [[] for _ in lanes]
    ready = threading.Barrier(LANES)

    def work(number: int) -> None:
        ready.wait(timeout=60)
        for _ in range(20):
            outputs = lanes[number].infer(feeds[number])
            seen[number].append({name: np.array(values) for name, values in outputs.items()})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answers in enumerate(seen):
        assert len(answers) == 20
        for answer in answers:
            for name, values in expected[number].items():
                np.testing.assert_array_equal(answer[name], values, err_msg=f"lane {number}, {name}")
    for one in reversed(lanes):
        one.close()


def test_a_lane_of_a_closed_session_is_refused(backend, mlp_file):
    """In words of ours."""
    session = backend.load(mlp_file, LoadOptions())
    session.close()
    with pytest.raises(BackendError, match=r"closed|no lanes"):
        lane(session)


def test_batches_of_varying_size_are_taken_or_the_inputs_say_the_one_that_is(backend, examples):
    """`varying_batch`: either every size up to `batch` runs, or the batch axis is fixed at `batch`, for the caller to fill."""
    example = examples["mlp"]
    full = example.feed(4, 0)
    session = backend.load(example.path, LoadOptions(batch=4, varying_batch=True, sample_shapes=shapes(full)))
    axes = {info.shape[0] for info in session.inputs}
    if axes == {4}:
        return
    assert not any(isinstance(axis, int) for axis in axes)
    for rows in (1, 4, 3):
        feeds = example.feed(rows, rows)
        answers = session.infer(feeds)
        assert {len(values) for values in answers.values()} == {rows}
        if backend.name not in COMPUTES_NOTHING:
            np.testing.assert_allclose(answers["y"], example.expected(feeds)["y"], rtol=1e-4, atol=example.atol)


def test_threads_are_told_per_inference_whatever_the_streams(backend, mlp_file):
    """Two streams of one thread each are inferences of one thread."""
    facts = backend.load(mlp_file, LoadOptions(threads=1, streams=2)).facts

    assert facts.threads in {1, None}
