"""What the machine at hand can do: matrix products and memory traffic, published or measured.

Accelerators have published peaks, by which MFU is defined (Chowdhery et al. 2022, appendix B). A
CPU has none that means much, so its rates are measured, by the products that JAX makes of large
float32 matrices and by a matrix times a vector, in this process and on as many threads as it has.

What it does not do: count what a model needs (`recipes/flops.py`).
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rates(NamedTuple):
    """What one device does a second; `measured` on a CPU is a processor second of one thread."""

    flops: float  # of matrix products: dense bf16 (published), or float32 (measured)
    bandwidth: float  # bytes read from memory
    measured: bool


# Dense bf16 FLOP/s and bytes/s of memory, by JAX's `device_kind`; from the makers' data sheets.
PUBLISHED = {
    "NVIDIA H100 80GB HBM3": Rates(989e12, 3.35e12, False),
    "NVIDIA H200": Rates(989e12, 4.8e12, False),
    "NVIDIA A100-SXM4-80GB": Rates(312e12, 2.04e12, False),
    "NVIDIA A100-SXM4-40GB": Rates(312e12, 1.56e12, False),
    "TPU v4": Rates(275e12, 1.23e12, False),
    "TPU v5 lite": Rates(197e12, 0.82e12, False),
    "TPU v5": Rates(459e12, 2.77e12, False),
    "TPU v5p": Rates(459e12, 2.77e12, False),
    "TPU v6 lite": Rates(918e12, 1.64e12, False),
}
WIDTH = 1024  # of the matrices that are multiplied: 4 MiB each
READ_BYTES = 2**28  # of the matrix that is read: more than a core's caches hold


def rates() -> Rates | None:
    """Of the first device; None where nothing is known of its kind."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return Rates(matrix_rate(), read_rate(), True)
    return PUBLISHED.get(device.device_kind)


def matrix_rate(*, width: int = WIDTH, seconds: float = 0.5) -> float:
    """FLOP a processor second of square float32 products, the best of several."""
    x = jax.random.normal(jax.random.key(0), (width, width))
    return 2 * width**3 / _fastest(lambda: x @ x, seconds)


def read_rate(*, size: int = READ_BYTES, seconds: float = 0.5) -> float:
    """Bytes read a processor second, by a float32 matrix times a vector, the best of several."""
    matrix = jnp.ones((size // 4 // WIDTH, WIDTH))
    vector = jnp.ones(WIDTH)
    return matrix.nbytes / _fastest(lambda: matrix @ vector, seconds)


def _fastest(work: Callable[[], jax.Array], seconds: float) -> float:
    """Processor seconds of the quickest call, of as many as fit into `seconds`."""
    work().block_until_ready()
    best, started = float("inf"), time.process_time()
    while (began := time.process_time()) - started < seconds:
        work().block_until_ready()
        best = min(best, time.process_time() - began)
    return best
