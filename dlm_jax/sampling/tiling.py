"""How one step of many rows is cut into pieces of work. It changes speed, never a result."""

from __future__ import annotations

import dataclasses

from dlm_jax.parallel.mesh import single_cpu

# Widths that a row may be cut to, close together where most rows are. Each one below a canvas's
# length is one more copy of the encoder to compile; every multiple of 64 tokens up to 512 is here,
# so that all usual canvases share them.
_WIDTHS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768)
_LONG_WIDTHS = (1024, 1536, 2048, 3072)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes of the pieces that the denoiser is called on.

    Args:
      block_tokens: the encoder runs on blocks of about this many tokens: rows that need no
        evaluation are left out, and each row is cut to the smallest width that holds it. The shape
        of a block depends on its rows' own lengths only, so that their floats cannot depend on the
        rest of the batch: matrix libraries choose their order of summation by shape (with XLA on
        x86, the last bits change with the number of rows and with the padding). Larger blocks
        multiply a little faster, but the last one of each width is then mostly empty places, which
        costs more in batches of up to some dozens of rows. None runs the whole batch at once, which
        accelerators and sharded batches need.
      head_pieces: positions that the head runs on at a time, descending, so that never more than
        [head_pieces[0], vocab] logits exist: as many pieces of each size as are full, the last size
        for the rest. A product with the table reads it once a piece. XLA's CPU kernels give a
        position the same bits in a piece of 64 positions or more, whichever its size; smaller
        ones they sum in another order.
      vocab_tile: rows of the table that the head works through at a time, all wanted positions
        before the next, where the token rule allows it: the logits of a tile stay in the cache, and
        the table is read once. With `block_tokens` only; None multiplies with the whole table.
    """

    block_tokens: int | None = 64
    head_pieces: tuple[int, ...] = (256, 64)
    vocab_tile: int | None = 2048

    def widths(self, length: int) -> tuple[int, ...]:
        """Widths of blocks for a canvas of `length` tokens, ascending, the last one is `length`."""
        if self.block_tokens is None:
            return (length,)
        return (*(width for width in _WIDTHS + _LONG_WIDTHS if width < length), length)

    def rows(self, width: int) -> int:
        """Rows of a block of `width` tokens."""
        assert self.block_tokens is not None
        return max(1, self.block_tokens // width)


def default_tiling() -> Tiling:
    """Blocks on a single CPU device, the whole batch at once elsewhere."""
    return Tiling() if single_cpu() else Tiling(block_tokens=None, head_pieces=(512,))
