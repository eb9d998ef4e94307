"""What a remat policy keeps of a layer: its bytes, and what the backward pass computes again."""

from __future__ import annotations

from dlm_jax.models.config import LAYER_VALUES, EncoderConfig

# Values of `LAYER_VALUES` that a policy keeps by its name. 'none' keeps more; how much more is up
# to the compiler.
_KEPT = {
    "full": (),
    "dots": ("qkv", "attention_out", "mlp_up", "mlp_down"),
    "minimal": LAYER_VALUES,
    "none": LAYER_VALUES,
}


def kept_width(config: EncoderConfig, tensor: int) -> float:
    """Numbers for each token that a layer keeps for its backward pass, at least, on a device.

    Args:
        config: of the encoder.
        tensor: ways that the layer is split.
    """
    width = config.embed_dim
    sizes = {
        "qkv": 3 * width / tensor,
        "attention_context": width / tensor,
        "attention_out": width,
        "mlp_up": config.mlp_dim / tensor,
    }
    return width + sum(sizes.get(name, 0.0) for name in _kept(config))


def recomputed_flops(config: EncoderConfig, length: int) -> float:
    """Operations that the backward pass repeats, for each token of a row and each layer."""
    if config.remat_policy == "none":
        return 0.0
    width, kept = config.embed_dim, _kept(config)
    attention = 4.0 * length * width
    products = {
        "qkv": 6.0 * width**2,
        "attention_context": attention,
        "attention_out": 2.0 * width**2,
        "mlp_up": 2.0 * width * config.mlp_dim,
        "mlp_down": 2.0 * width * config.mlp_dim,
    }
    again = sum(cost for name, cost in products.items() if name not in kept)
    # Where the context is kept, the probabilities are not: half of attention.
    return again + (attention / 2 if "attention_context" in kept else 0.0)


def _kept(config: EncoderConfig) -> tuple[str, ...]:
    policy = config.remat_policy
    return _KEPT[policy] if isinstance(policy, str) else tuple(policy)
