"""A denoiser of exact arithmetic, and the sampler of the specification simulated in plain numpy."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.sampling.token_rules import Argmax

VOCABULARY = SimpleNamespace(bos_id=0, pad_id=1, eos_id=2, unk_id=3, mask_id=29, size=30)


def context_codes(tokens, positions, segment_ids, num_codes):
    """A hash of all tokens of the row and of the position: equal integers whatever the shape."""
    present = (segment_ids > 0).astype("int32")
    weight = (positions * 7 + 3) % 11 + 1
    context = ((tokens * weight) % 97 * present).sum(axis=-1, keepdims=True)
    return (context * 13 + positions * 31 + tokens * 5) % num_codes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyDenoiser:
    """Random logits, a different row of `table` [codes, vocab] for each context and position."""

    table: jax.Array

    def features(self, tokens, positions, segment_ids):
        codes = context_codes(tokens, positions, segment_ids, self.table.shape[0])
        return codes[..., None].astype(jnp.float32)

    def logits(self, features):
        return self.table[features[..., 0].astype(jnp.int32)]


@dataclasses.dataclass
class Simulation:
    """One row after each step, by the numbered rules of the specification (method.md 3.3)."""

    tokens: list
    scores: list
    masked: list


def log_softmax(logits):
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def banned_table(denoiser):
    table = np.array(denoiser.table)
    table[:, VOCABULARY.mask_id] = -np.inf
    return table


@jax.jit
def _piece_confidence(logits):
    return Argmax().choose(logits, (None, None)).log_probs


def table_confidence(table):
    """float32 [codes] scores of the token rule itself, checked apart against float64.

    In pieces of the size that the sampler uses, so that every bit is the same.
    """
    padded = np.concatenate([table, table[: -len(table) % 64]])
    pieces = [_piece_confidence(part[None]) for part in padded.reshape(-1, 64, table.shape[1])]
    return np.concatenate([np.asarray(part[0]) for part in pieces])[: len(table)]


def simulate(denoiser, tokens, editable, *, steps, conditional, cosine, denoised=False):
    """Decodes one row of ids (unpadded) with nothing but Python loops."""
    table = banned_table(denoiser)
    best = table.argmax(axis=-1)
    confidence = table_confidence(table)
    x = [VOCABULARY.mask_id if e else t for t, e in zip(tokens, editable, strict=True)]
    noisy = list(editable)
    score = [0.0] * len(x)
    places = [i for i, e in enumerate(editable) if e]
    result = Simulation([], [], [])
    for step in range(1, steps + 1):
        codes = context_codes(
            np.array([x]), np.arange(len(x))[None], np.ones((1, len(x)), np.int32), len(table)
        )[0]
        y, c = best[codes], confidence[codes]
        t = steps - step
        if denoised:
            rate = math.cos(math.pi * t / (2 * steps)) if cosine else 1 - t / steps
            k = len(places) - int(len(places) * rate)
        else:
            rate = math.cos(math.pi * step / (2 * steps)) if cosine else 1 - step / steps
            k = int(len(places) * rate)
        low = set(sorted(places, key=lambda i: (c[i], i))[:k])
        after = list(noisy)
        for i in places:
            again = i in low and (not conditional or (y[i] == x[i] and c[i] < score[i]))
            after[i] = (noisy[i] or again) and i in low
            if (not noisy[i] and again) or (noisy[i] and i in low):
                x[i], score[i] = VOCABULARY.mask_id, -np.inf
            elif noisy[i]:
                x[i], score[i] = int(y[i]), c[i]
        noisy = after
        result.tokens.append(list(x))
        result.scores.append(np.array(score, np.float32))
        result.masked.append(sum(noisy))
    return result


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiling costs far more than running these tiny loops, so leave LLVM's optimiser out."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def vocabulary():
    return VOCABULARY


@pytest.fixture(scope="session")
def key():
    return jax.random.key(7, impl="threefry2x32")


@pytest.fixture(scope="session")
def toy():
    rng = np.random.default_rng(0)
    return ToyDenoiser(jnp.asarray(rng.normal(size=(509, VOCABULARY.size)) * 2, jnp.float32))


@pytest.fixture(scope="session")
def reference():
    return SimpleNamespace(
        simulate=simulate,
        log_softmax=log_softmax,
        banned_table=banned_table,
        ToyDenoiser=ToyDenoiser,
    )
