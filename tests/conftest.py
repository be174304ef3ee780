"""Strict mode for every test: 8 fake CPU devices, no silent rank promotion, no network.

Set before jax is imported, hence the order of this file.
"""

import atexit
import gc
import os
import shutil
import tempfile
import threading
from importlib import metadata
from pathlib import Path

# Compiling is a third of the time: each of the second and third halves it, the fourth spares small
# programs the trouble of several threads. A flag that XLA does not know ends a process, so the last
# three are for the versions that are known to have them. The last is XLA's own order of operations:
# in it, or not in it, must be this process and the `jaxrlhf` processes that it starts alike, for on
# several devices results differ in their last bits.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * metadata.version("jaxlib").startswith("0.10.")
    + " --xla_cpu_enable_concurrency_optimized_scheduler=true"
    * (
        metadata.version("jaxlib").startswith("0.10.")
        and "concurrency_optimized_scheduler" not in os.environ.get("XLA_FLAGS", "")
    )
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
# No program is read in a profile, so no operation needs to say where it comes from.
os.environ["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Small products are what there is: threads that wait for one are work for nobody, on all cores.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# What takes long to make, and programs of more than a moment, are made once for the session, by
# whichever process needs them first: the others, which share the work, inherit the folder's name.
if "JAXRLHF_TESTS" not in os.environ:
    os.environ["JAXRLHF_TESTS"] = tempfile.mkdtemp(prefix="jaxrlhf-session-")
    atexit.register(shutil.rmtree, os.environ["JAXRLHF_TESTS"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", f"{os.environ['JAXRLHF_TESTS']}/compiled")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Tracing and lowering are half of it. JAX makes an MLIR context for each program, a tenth of a
# session's time; here a thread has one, and a new one for each file of tests, lest it grow. And the
# garbage collector looks less often, never at what was there before the first test.
contexts = threading.local()
if metadata.version("jax").startswith("0.10."):  # what is not public may be elsewhere in another
    from jax._src.interpreters import mlir

    make_ir_context = mlir.make_ir_context

    def one_ir_context():
        if not hasattr(contexts, "one"):
            contexts.one = make_ir_context()
        return contexts.one

    mlir.make_ir_context = one_ir_context
gc.set_threshold(100_000, 20, 50)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.freeze()  # pytest looks for garbage ten times before it ends


@pytest.fixture
def unpainted(monkeypatch):
    """Pictures are empty files: for tests that do not look at them. Painting takes long."""
    from jaxrlhf import plots

    monkeypatch.setattr(plots, "png", lambda figure: b"")


# A compiled program is a few memory maps, of which Linux lets a process have 65,530.
MAPS, MANY = Path("/proc/self/maps"), 30_000


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs are let go of when there are many; without this a long session crashes."""
    yield
    vars(contexts).clear()
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()
        gc.collect()


# Files that take long go first, so that no process is left alone with one at the end.
LONGEST = (
    *("test_contract", "test_resume_process", "test_config_effects", "test_rounds"),
    *("test_cai_commands", "test_cai_seeds", "test_bad_input", "test_adapters", "test_lora"),
    *("test_lab_sign_flip", "test_w2s_real", "test_memory", "test_inference", "test_evaluate"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them first; what stays in a file stays in its order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
