"""Diffusive adaptation in torch + transformers, what `train_step.py` compares with.

XLMRobertaForMaskedLM with scaled-dot-product attention, each batch padded to its longest example,
coupled absorbing corruption (2B rows), the vocabulary projection at masked positions only, fused
AdamW, gradients clipped at norm 1. float32 on the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from benchmarks.worker import Examples, gemm_rate, load_examples, serve

PAD_ID = 1


@dataclass
class PaddedBatch:
    """Examples right-padded to the longest, all [batch, length]."""

    tokens: torch.Tensor
    maskable: torch.Tensor
    attention_mask: torch.Tensor | None


def pad(examples: Examples) -> PaddedBatch:
    """Pads ragged examples; no attention mask where nothing was padded, to spare torch the work."""
    width = int(examples.lengths.max())
    count = len(examples.lengths)
    tokens = np.full((count, width), PAD_ID, np.int64)
    maskable = np.zeros((count, width), bool)
    for row, (ids, prompt) in enumerate(examples.rows()):
        tokens[row, : len(ids)] = ids
        maskable[row, prompt : len(ids)] = True
    attended = np.arange(width) < examples.lengths[:, None]
    return PaddedBatch(
        torch.from_numpy(tokens),
        torch.from_numpy(maskable),
        None if attended.all() else torch.from_numpy(attended.astype(np.int64)),
    )


def corrupt_coupled(
    tokens: torch.Tensor, maskable: torch.Tensor, mask_id: int, num_timesteps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two noise levels of each row, the cleaner one's masks inside the noisier one's.

    Returns:
      noisy int64 [2 batch, length], absorbed bool [2 batch, length], time int64 [2 batch] in 1..T.
    """
    rows = tokens.shape[0]
    first, second = torch.randint(1, num_timesteps + 1, (2, rows))
    late, early = torch.maximum(first, second), torch.minimum(first, second)
    late_mask = (torch.rand(tokens.shape) < (late / num_timesteps)[:, None]) & maskable
    uniform = torch.rand(tokens.shape)
    kept = uniform > ((late - early) / late)[:, None]
    redrawn = (uniform < (late / num_timesteps)[:, None]) & maskable
    early_mask = torch.where((late == early)[:, None], redrawn, late_mask & kept)
    absorbed = torch.cat([late_mask, early_mask])
    noisy = tokens.repeat(2, 1).masked_fill(absorbed, mask_id)
    return noisy, absorbed, torch.cat([late, early])


class Trainer:
    """Model, optimizer and the training step."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        config = XLMRobertaConfig(
            vocab_size=arguments.vocab_size,
            hidden_size=arguments.embed_dim,
            num_hidden_layers=arguments.num_layers,
            num_attention_heads=arguments.num_heads,
            intermediate_size=arguments.mlp_dim,
            max_position_embeddings=514,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=arguments.dropout_rate,
            attention_probs_dropout_prob=arguments.dropout_rate,
            attn_implementation="sdpa",
        )
        torch.manual_seed(0)
        self.model = XLMRobertaForMaskedLM(config).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-5, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.mask_id = arguments.vocab_size - 1
        self.num_timesteps = arguments.num_timesteps

    def loss(self, batch: PaddedBatch) -> tuple[torch.Tensor, int]:
        """Mean over rows of w(t)/N times the summed cross entropy at masked positions."""
        noisy, absorbed, times = corrupt_coupled(
            batch.tokens, batch.maskable, self.mask_id, self.num_timesteps
        )
        attention_mask = batch.attention_mask
        hidden = self.model.roberta(
            noisy,
            attention_mask=None if attention_mask is None else attention_mask.repeat(2, 1),
        ).last_hidden_state
        logits = self.model.lm_head(hidden[absorbed])
        targets = batch.tokens.repeat(2, 1)[absorbed]
        nll = functional.cross_entropy(logits, targets, reduction="none")
        weight = (self.num_timesteps - times + 1) / batch.maskable.sum(1).repeat(2)
        row_of_token = absorbed.nonzero()[:, 0]
        return (nll * weight[row_of_token]).sum() / len(noisy), len(targets)

    def step(self, batch: PaddedBatch) -> dict[str, float]:
        """One update; wall-clock seconds, the loss and how many positions were projected."""
        start = time.perf_counter()
        loss, absorbed = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        return {
            "seconds": time.perf_counter() - start,
            "loss": value,
            "absorbed": absorbed,
            "positions": 2 * batch.tokens.numel(),
        }


def main() -> None:
    """Serves the steps of every case, and the GEMM that torch reaches on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--num_timesteps", type=int, required=True)
    parser.add_argument("--dropout_rate", type=float, required=True)
    for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "mlp_dim"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(arguments)
    cases = {
        case: [pad(step) for step in steps]
        for case, steps in load_examples(arguments.examples).items()
    }

    def gemm(size: int) -> dict[str, float]:
        left, right = torch.rand(size, size), torch.rand(size, size)
        return {"flops_per_second": gemm_rate(lambda: torch.mm(left, right), size)}

    def stepper(batches: list[PaddedBatch]) -> Callable[[int], dict[str, float]]:
        return lambda index: trainer.step(batches[index % len(batches)])

    serve({"gemm": gemm} | {case: stepper(batches) for case, batches in cases.items()})


if __name__ == "__main__":
    main()
