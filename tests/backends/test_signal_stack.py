"""What OpenVINO does to a thread's signal stack, and that it does not stay."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest

from backends import signal_stack
from backends.base import LoadOptions
from backends.ov import OvBackend
from profiler.variants.loading import loading_facts

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the structure is Linux's"),
]


def state():
    found = signal_stack.current()
    return found.sp, found.flags, found.size


def test_openvino_still_sets_a_stack_and_kept_takes_it_back(mlp_file):
    """When the first half fails, OpenVINO has mended it and the module can go."""
    import openvino

    core, found = openvino.Core(), []

    def compiled():
        found.append(state())
        with signal_stack.kept():
            core.compile_model(core.read_model(str(mlp_file)), "CPU")
            found.append(state())
        found.append(state())

    # A thread that no other test has compiled in.
    thread = threading.Thread(target=compiled)
    thread.start()
    thread.join()
    before, changed, after = found
    assert changed != before
    assert after == before


def test_loading_leaves_the_thread_as_it_was(mlp_file):
    """By the adapter, and by the check that every variant can be loaded."""
    import onnx

    before = state()
    OvBackend().load(mlp_file, LoadOptions()).close()
    assert state() == before
    loading_facts(onnx.load(str(mlp_file)), "graph", [])
    assert state() == before


@pytest.mark.process
def test_ctrl_c_after_the_first_of_two_models_went_first_is_a_keyboard_interrupt(mlp_file):
    """And not a segmentation fault, which would tell nothing and mark nothing as interrupted."""
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from backends.base import LoadOptions
        from backends.ov import OvBackend
        signal.signal(signal.SIGINT, signal.default_int_handler)
        first, second = (OvBackend().load(Path(sys.argv[1]), LoadOptions()) for _ in range(2))
        first.close()
        del first
        second.close()
        del second
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(mlp_file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
