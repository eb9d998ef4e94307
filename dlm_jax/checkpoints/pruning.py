"""Models cut to the token rows of a pruned vocabulary, and to their lowest layers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from numpy.typing import NDArray

from dlm_jax.checkpoints.loading import LoadedModel
from dlm_jax.data.pruning import prune_vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Parameters


def prune_model(
    model: LoadedModel, counts: NDArray[np.int64], minimum_count: int = 1
) -> LoadedModel:
    """Cuts a model and its vocabulary to the pieces that occur.

    The logits of the pieces that stay are what they were for the same text.

    Args:
        model: the model; its arrays are not changed.
        counts: int64 [vocabulary size], how often each id occurs, as `count_ids` gives it.
        minimum_count: pieces that occur less often go.

    Raises:
        UserError: no piece would be left, or the vocabulary is of a kind that cannot be pruned.
    """
    pruned = prune_vocabulary(model.vocabulary, counts, minimum_count)
    description = model.description
    config = dataclasses.replace(
        description.config,
        vocab_size=pruned.vocabulary.size,
        pad_id=pruned.vocabulary.pad_id,
    )
    origin = f"{description.origin}, cut to {pruned.vocabulary.size} pieces"
    return dataclasses.replace(
        model,
        description=dataclasses.replace(description, config=config, origin=origin),
        vocabulary=pruned.vocabulary,
        parameters=_take_rows(config, model.parameters, pruned.old_ids),
    )


def keep_lowest_layers(model: LoadedModel, num_layers: int) -> LoadedModel:
    """Leaves the top layers of a model out, which costs an encoder least (arXiv 2004.03844).

    Args:
        model: the model; its arrays are not changed.
        num_layers: how many stay, counted from the embeddings.

    Raises:
        UserError: the model has not that many.
    """
    description = model.description
    if not 1 <= num_layers <= description.config.num_layers:
        raise UserError(
            f"{num_layers} layers cannot stay of a model that has {description.config.num_layers}"
        )
    config = dataclasses.replace(description.config, num_layers=num_layers)
    origin = f"{description.origin}, cut to {num_layers} layers"
    layers = jax.tree.map(lambda leaf: leaf[:num_layers], model.parameters["layers"])
    return dataclasses.replace(
        model,
        description=dataclasses.replace(description, config=config, origin=origin),
        parameters={**model.parameters, "layers": layers},
    )


def _take_rows(
    config: EncoderConfig, parameters: Parameters, rows: NDArray[np.int64]
) -> Parameters:
    embeddings, head = dict(parameters["embeddings"]), dict(parameters["head"])
    embeddings["token"] = {"embedding": embeddings["token"]["embedding"][rows]}
    head["bias"] = head["bias"][rows]
    if not config.tie_embeddings:
        head["decoder"] = {"kernel": head["decoder"]["kernel"][rows]}
    return {**parameters, "embeddings": embeddings, "head": head}
