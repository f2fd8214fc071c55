"""NVIDIA's real bindings over empty libraries, TensorRT-RTX from the registry, and a C stand-in for the CUDA driver.

Everything is kept under .cache/tensorrt and made once. Used by the tests and by scripts/check_trt_api.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "tensorrt"
BINDINGS = ("10.13.2.6", "10.16.1.11", "11.0.0.114", "11.4.0.106")
RTX = "1.7.1.116"
PYTHON = f"py{sys.version_info[0]}{sys.version_info[1]}"
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


class NotPrepared(Exception):  # noqa: N818
    """What is missing on this machine (a compiler, a wheel, the network)."""


def compiler() -> str:
    """The C compiler, or NotPrepared."""
    found = shutil.which("gcc") or shutil.which("cc")
    if not found:
        raise NotPrepared("no C compiler (gcc or cc) here to make stub libraries with")
    return found


def compile_library(source: str, target: Path, *flags: str) -> Path:
    """Compile C source into a shared library."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler(), "-shared", "-fPIC", "-x", "c", "-", "-o", str(target), *flags]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return target


def stub_libraries() -> Path:
    """Folder with libnvinfer, its parser and plugins for majors 10 and 11, whose nine functions answer null."""
    folder = CACHE / "stubs"
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS)
    for major in (10, 11):
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            name = f"lib{library}.so.{major}"
            if not (folder / name).exists():
                compile_library(source, folder / name, f"-Wl,-soname,{name}")
    return folder


def installed(name: str, *requirements: str, fetch: bool) -> Path:
    """A folder with the wheels, from an earlier call or (with `fetch`) from the package registry."""
    folder = CACHE / f"{name}-{PYTHON}"
    if folder.exists():
        return folder
    if not fetch:
        raise NotPrepared(f"{' '.join(requirements)} not fetched yet; run scripts/check_trt_api")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        target = Path(work) / "site"
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        if subprocess.run([*pip[:3], "--version"], capture_output=True, check=False).returncode:
            pip = ["uv", "pip", "install", "--quiet", "--python", sys.executable]
        command = [*pip, "--no-deps", "--only-binary=:all:", "--target", str(target), *requirements]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=280)
        except (OSError, subprocess.SubprocessError) as error:
            words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            raise NotPrepared(f"{' '.join(requirements)} cannot be installed here: {' '.join(words)}") from error
        target.rename(folder)
    return folder


def bindings(version: str, *, fetch: bool) -> Path:
    """NVIDIA's binding of full TensorRT, without its libraries."""
    return installed(f"bindings-{version}", f"tensorrt-cu13-bindings=={version}", fetch=fetch)


def rtx(*, fetch: bool) -> Path:
    """TensorRT-RTX with its libraries: parses and builds without a GPU (95 MB)."""
    names = (f"tensorrt-rtx-cu13-libs=={RTX}", f"tensorrt-rtx-cu13-bindings=={RTX}")
    return installed(f"rtx-{RTX}", *names, fetch=fetch)


_NAMES = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def there(name):
    item = trt
    for part in name.split("."):
        if not hasattr(item, part):
            return False
        item = getattr(item, part)
    return True
print(json.dumps({"version": trt.__version__, "there": [n for n in json.load(sys.stdin) if there(n)]}))
"""


def names_in_binding(folder: Path, module: str, names: set[str], libraries: Path | None = None) -> tuple[str, set[str]]:
    """Import a real binding in its own process and return its version and which of `names` it has."""
    environ = os.environ | {"PYTHONPATH": str(folder)}
    if libraries is not None:
        environ["LD_LIBRARY_PATH"] = str(libraries)
    command = [sys.executable, "-c", _NAMES, module]
    done = subprocess.run(
        command, input=json.dumps(sorted(names)), env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"{module} in {folder.name} ended with {done.returncode}: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    return answer["version"], set(answer["there"])


CUDA_SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
typedef unsigned long long P;
static int live = 0, primary = 0;
#ifdef NO_DEVICE
int cuInit(unsigned f) { return 100; }
#else
int cuInit(unsigned f) { return 0; }
#endif
int cuDriverGetVersion(int *v) { *v = 13020; return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *d, int i) { *d = 40 + i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d == 41 ? "Stub GPU 1" : "Stub GPU 0", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 12 : a == 76 ? 1 : -1; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = &primary; primary++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { primary--; return primary < 0 ? 1 : 0; }
int cuCtxSetCurrent(void *c) { return c == (void *)&primary ? 0 : 201; }
int cuMemAlloc_v2(P *p, size_t n) { if (n > 1u << 20) return 2; *p = (P)(uintptr_t)malloc(n); live++; return 0; }
int cuMemFree_v2(P p) { free((void *)(uintptr_t)p); live--; return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { *p = malloc(n); live++; return 0; }
int cuMemFreeHost(void *p) { free(p); live--; return 0; }
int cuStreamCreate(void **s, unsigned f) { if (f != 1) return 1; *s = malloc(8); live++; return 0; }
int cuStreamDestroy_v2(void *s) { free(s); live--; return 0; }
int cuStreamSynchronize(void *s) { return s ? 0 : 400; }
int cuMemcpyHtoDAsync_v2(P d, void *h, size_t n, void *s) { memcpy((void *)(uintptr_t)d, h, n); return 0; }
int cuMemcpyDtoHAsync_v2(void *h, P d, size_t n, void *s) { memcpy(h, (void *)(uintptr_t)d, n); return 0; }
int cuEventCreate(void **e, unsigned f) { if (f) return 1; *e = calloc(1, sizeof(float)); live++; return 0; }
int cuEventDestroy_v2(void *e) { free(e); live--; return 0; }
static float now_ms = 0;
int cuEventRecord(void *e, void *s) { if (!s) return 400; *(float *)e = ++now_ms; return 0; }
int cuEventElapsedTime(float *ms, void *a, void *b) { *ms = *(float *)b - *(float *)a; return 0; }
static int capturing = 0;
int cuStreamBeginCapture_v2(void *s, int mode) { if (!s || mode != 1) return 1; capturing = 1; return 0; }
int cuStreamEndCapture(void *s, void **g) { if (!capturing) return 1; capturing = 0; *g = malloc(8); live++; return 0; }
int cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) { *x = malloc(8); live++; return 0; }
int cuGraphLaunch(void *x, void *s) { return x && s ? 0 : 400; }
int cuGraphDestroy(void *g) { free(g); live--; return 0; }
int cuGraphExecDestroy(void *x) { free(x); live--; return 0; }
int cuGetErrorName(int e, const char **s) {
    *s = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : e == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return *s ? 0 : 1; }
int cuGetErrorString(int e, const char **s) {
    *s = e == 2 ? "out of memory" : e == 100 ? "no CUDA-capable device is detected" : 0; return *s ? 0 : 1; }
int stub_live(void) { return live; }
"""


def cuda_library(folder: Path, *flags: str) -> Path:
    """A libcuda whose device memory is host memory; `-DNO_DEVICE` makes its cuInit fail."""
    return compile_library(CUDA_SOURCE, folder / f"libcuda{len(flags)}.so.1", *flags)
