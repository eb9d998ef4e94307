import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.parallel import compiler


def test_the_options_are_known_to_this_xla_and_change_no_product() -> None:
    options = compiler.training_compiler_options()
    assert options if jax.default_backend() == "cpu" else not options
    left, right = jax.random.normal(jax.random.key(0), (2, 64, 64))
    product = jax.jit(jnp.matmul, compiler_options=options)(left, right)
    exact = np.asarray(left, np.float64) @ np.asarray(right, np.float64)
    np.testing.assert_allclose(product, exact, atol=1e-4)


def test_options_that_this_xla_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    compiler.training_compiler_options.cache_clear()
    assert compiler.training_compiler_options() == {}
    compiler.training_compiler_options.cache_clear()
