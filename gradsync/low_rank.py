"""PowerSGD: a gradient matrix as the product of two thin factors (Vogels et al. 2019, arXiv:1905.13727)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gradsync.buckets import Bucket


def rank_worth_sending(rows: int, columns: int, rank: int) -> int:
    """The rank of the factors, or 0 if they would be no smaller than the matrix itself."""
    rank = min(rank, rows, columns)
    return rank if (rows + columns) * rank < rows * columns else 0


class LowRankBucket:
    """One bucket's matrices as rank-r factors, its other gradients as they are, in two all-reduces.

    A gradient [out, ...] is a matrix M_i [out, rest] on replica i. With Q [rest, r] from the step before, equal on
    all replicas, one iteration of the power method on the sum of all M_i, which no replica holds:

        P = sum M_i Q;  P = orthonormal columns of P;  Q_i = M_i^T P;  Q = sum Q_i;  sum M_i is about P Q^T

    The first all-reduce carries every P of the bucket and what is not compressed (vectors, and matrices that
    factors would not make smaller), the second every Q; a bucket without matrices needs the first alone.

    Error feedback: what replica i did not get across, E_i = M_i - P Q_i^T, is added to its next gradient. The M_i are
    weighted by the replica's share of the global batch, so the E_i are as well, each by the share that it had when
    its gradient was computed, and are not weighted again: whatever the later shares, the sum over replicas of
    all that is sent and of E_i is the sum of the global mean gradients.

    Under a loss scaler the gradients come multiplied by its present scale, while E_i must outlast a change of it, so
    E_i is kept without. If a sum overflows, the scaler skips the step: then Q stays as it was and the bucket's E_i,
    into which the infinity has come, start anew from zero. Nothing here waits for the device to find that out.
    """

    def __init__(self, bucket: Bucket, rank: int, scaler: torch.amp.GradScaler, generator: torch.Generator) -> None:
        shapes = [(p.shape[0], p.numel() // p.shape[0]) if p.dim() > 1 else (1, p.numel()) for p in bucket.parameters]
        ranks = [rank_worth_sending(rows, columns, rank) for rows, columns in shapes]
        # Memory order, not the parameter's: the rows of a channels-last kernel are permuted alike on all replicas.
        self.matrices = [piece.view(shape) for piece, shape, r in zip(bucket.pieces, shapes, ranks, strict=True) if r]
        self.others = [piece for piece, r in zip(bucket.pieces, ranks, strict=True) if not r]
        self.errors = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.flat, self.scaler = bucket.flat, scaler
        kept = [r for r in ranks if r]
        p_shapes = [(matrix.shape[0], r) for matrix, r in zip(self.matrices, kept, strict=True)]
        q_shapes = [(matrix.shape[1], r) for matrix, r in zip(self.matrices, kept, strict=True)]
        self.first, *views = _buffer([*p_shapes, *((other.numel(),) for other in self.others)], bucket.flat)
        self.ps, self.others_sent = views[: len(kept)], views[len(kept) :]
        self.second, *self.qs = _buffer(q_shapes, bucket.flat)
        self.own, *self.own_qs = _buffer(q_shapes, bucket.flat)
        self.second.copy_(torch.randn(self.second.shape, generator=generator, dtype=self.second.dtype))
        self.one = torch.ones((), device=bucket.flat.device)

    def rounds(self) -> Iterator[torch.Tensor]:
        """See ``gradsync.compression``."""
        if not self.matrices:
            yield self.flat
            return
        before = self.second.clone() if self.scaler.is_enabled() else None
        self._add_gradients_to_errors()
        for matrix, q, p in zip(self.errors, self.qs, self.ps, strict=True):
            torch.mm(matrix, q, out=p)
        _copy(self.others_sent, self.others)
        yield self.first
        _copy(self.others, self.others_sent)
        for matrix, p, q in zip(self.errors, self.ps, self.own_qs, strict=True):
            p.copy_(torch.linalg.qr(p).Q)  # orthonormal even where a gradient and so P is zero
            torch.mm(matrix.T, p, out=q)
        self.second.copy_(self.own)
        yield self.second
        for matrix, error, p, q, own in zip(self.matrices, self.errors, self.ps, self.qs, self.own_qs, strict=True):
            error.addmm_(p, own.T, alpha=-1)
            torch.mm(p, q.T, out=matrix)
        if before is not None:
            self._unscale_errors(before)

    def _add_gradients_to_errors(self) -> None:
        if self.scaler.is_enabled():
            torch._foreach_mul_(self.errors, self.scaler.scale(self.one).to(self.flat.dtype))
        torch._foreach_add_(self.errors, self.matrices)

    def _unscale_errors(self, before: torch.Tensor) -> None:
        finite = self.first.isfinite().all() & self.second.isfinite().all()
        self.second.copy_(torch.where(finite, self.second, before))
        inverse = 1 / self.scaler.scale(self.one).to(self.flat.dtype)
        for error in self.errors:
            error.copy_(torch.where(finite, error * inverse, 0))


def _buffer(shapes: list[tuple[int, ...]], like: torch.Tensor) -> list[torch.Tensor]:
    """One buffer, and its parts as tensors of the given shapes."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
    return [flat, *(part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))]


def _copy(to: list[torch.Tensor], source: list[torch.Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)
