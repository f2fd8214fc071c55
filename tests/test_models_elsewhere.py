"""Models are untrusted: only modules that work in processes of their own, or on the user's own code, read or run one."""

from __future__ import annotations

import ast
from pathlib import Path

import profiler

ROOT = Path(profiler.__file__).parent
WORKS = {"read_model", "InferenceSession", "infer_shapes", "SymbolicShapeInference", "load_model_from_string"}
"""Names of calls that parse or run a model; `onnx.load` and `onnx.checker.…` are found by their module."""
ELSEWHERE = (
    "maker.py",
    "worker.py",
    "onnx_io.py",
    "artifacts.py",
    "variants/",
    "models/",
    "pruning/",
    "cluster/tasks.py",
)
"""What the maker, a worker or a cluster's worker runs; `artifacts.make` is replaced by `making.MakerStore` in the controller."""
COUNTING = ("roofline/graph.py",)
"""What `maker._count` runs."""
EXPORT = ("export/base.py", "export/onnx.py", "export/torch.py", "export/sklearn.py")
"""The user's own modules and what came of them; `export/onnx.py` is run by the maker."""
STORES = ("maker.py", "artifacts.py", "cluster/tasks.py", "roofline/artifact.py")
"""Who may have an artifact store that makes things itself; the roofline only looks for files in one."""


def calls(path: Path) -> list[str]:
    """Names of what a module calls, with the module before it: `onnx.load`, `read_model`."""
    return [
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def works_on_models(name: str) -> bool:
    return name.rpartition(".")[2] in WORKS or name == "onnx.load" or name.startswith("onnx.checker.")


def who(found) -> set[str]:
    """Modules with a call for which `found` holds."""
    modules = ((path.relative_to(ROOT).as_posix(), path) for path in ROOT.rglob("*.py"))
    return {name for name, path in modules if any(map(found, calls(path)))}


def test_no_other_module_reads_or_runs_a_model():
    """Give the work to `profiler.targets.maker.Maker.do`; a new exception belongs into docs/security.md too."""
    found = who(works_on_models)
    assert {"onnx_io.py", "maker.py", "variants/running.py"} <= found
    assert [name for name in sorted(found) if not name.startswith((*ELSEWHERE, *COUNTING, *EXPORT))] == []


def test_no_other_module_has_a_store_that_makes_variants_itself():
    """`MakerStore` where variants are made."""
    found = who(lambda name: name.rpartition(".")[2] == "ArtifactStore")
    assert "maker.py" in found
    assert sorted(found - {*STORES}) == []
