"""The kernels for a GPU compute what dense matrices do, compile for GPUs that are not here, and are left out without
triton.

What they compute is in `triton_sparse_cases`: on a GPU, or else in Triton's interpreter, which a process must ask for
before it imports triton.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actinium.features.dictionaries import sparse, triton_sparse

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
CASES = Path(__file__).with_name("triton_sparse_cases.py")
POINTERS = ("out", "weight", "values", "a", "b")
INDICES = ("rows", "offsets", "a_rows", "b_rows")


@needs_triton
def test_kernels_compute_what_dense_matrices_do(root):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        cwd=root,
        env=kept | interpreted,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("kernel", ["_weighted_rows", "_products"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_kernels_compile_for_a_gpu(kernel, dtype, monkeypatch, tmp_path):
    # The interpreter runs Python that the compiler does not know.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_sparse, kernel)
    accumulated = triton.language.float64 if dtype == "fp64" else triton.language.float32
    constants = {"accumulated": accumulated, "entries": triton_sparse.ENTRIES, "columns": triton_sparse.COLUMNS}
    kinds = (
        dict.fromkeys(POINTERS, f"*{dtype}") | dict.fromkeys(INDICES, "*i64") | dict.fromkeys(constants, "constexpr")
    )
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    # A stride of one is compiled in; one beyond 32 bits has another type.
    for name, value in (("weight_column", "constexpr"), ("weight_row", "i64"), ("b_column", "constexpr")):
        if name in signature:
            signature[name] = value
            constants |= {name: 1} if value == "constexpr" else {}
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants), target=GPUTarget("cuda", 80, 32)
    )
    assert made.asm["cubin"]


def loaded_again(name):
    """The module of kernels as it is when it is imported now."""
    spec = importlib.util.spec_from_file_location(name, triton_sparse.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_triton_there_are_no_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not loaded_again("without_triton").runs_on(torch.device("cpu"))


@needs_triton
def test_where_triton_fails_a_warning_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.warns(UserWarning, match="Triton fails on cpu: "):
        assert not loaded_again("failing").runs_on(torch.device("cpu"))


def test_a_processor_has_no_kernels():
    assert sparse._kernels(torch.device("cpu")) is None
