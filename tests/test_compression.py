"""Buckets, and what compression makes of them. Replicas are simulated: all rounds in one process, summed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradsync.buckets import Bucket, cut_into_buckets
from gradsync.compression import PowerSGD, SixteenBit
from gradsync.low_rank import rank_worth_sending

REPLICAS = 3
SHAPES = [(24, 4, 3, 3), (24,), (16, 24), (2, 3)]  # two matrices that factors make smaller, and two other tensors
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def parameters(*shapes, dtype=torch.float64):
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


@pytest.mark.parametrize(("elements", "limit", "buckets"), [
    ([1, 2, 3], 1e9, [[1, 2, 3]]), ([1, 2, 3], 0, [[1], [2], [3]]), ([2, 2, 2, 1], 16, [[2, 2], [2, 1]]),
    ([1, 9, 1], 16, [[1], [9], [1]]), ([4], 16, [[4]]), ([], 16, []),
])
def test_buckets_hold_consecutive_parameters_up_to_the_limit(elements, limit, buckets):
    cut = cut_into_buckets(parameters(*((n,) for n in elements), dtype=torch.float32), limit)
    assert [[p.numel() for p in bucket.parameters] for bucket in cut] == buckets


def test_a_bucket_has_one_dtype():
    mixed = [*parameters((3,), dtype=torch.float32), *parameters((3,)), *parameters((3,))]
    assert [bucket.flat.dtype for bucket in cut_into_buckets(mixed, 1e9)] == [torch.float32, torch.float64]


def test_backward_writes_into_the_bucket_in_the_parameters_layout():
    conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 6, 6)
    expected = torch.autograd.grad(conv(images).square().sum(), list(conv.parameters()))
    bucket = Bucket(list(conv.parameters()))
    conv(images).square().sum().backward()
    for parameter, wanted in zip(conv.parameters(), expected, strict=True):
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.untyped_storage().data_ptr() == bucket.flat.untyped_storage().data_ptr()
        torch.testing.assert_close(parameter.grad, wanted)
    in_memory_order = expected[0].permute(0, 2, 3, 1).flatten()
    torch.testing.assert_close(bucket.flat[: in_memory_order.numel()], in_memory_order)


class Replicas:
    """``REPLICAS`` copies of one bucket and its compression."""

    def __init__(self, make, shapes=SHAPES, dtype=torch.float64):
        self.buckets = [Bucket(parameters(*shapes, dtype=dtype)) for _ in range(REPLICAS)]
        self.compressions = [make([bucket]) for bucket in self.buckets]

    def exchange(self, gradients) -> tuple[list[torch.Tensor], list[int]]:
        """What each replica's bucket holds after it, and the elements of each all-reduce."""
        for bucket, gradient in zip(self.buckets, gradients, strict=True):
            bucket.flat.copy_(gradient)
        running = [c.rounds(b) for c, b in zip(self.compressions, self.buckets, strict=True)]
        sizes = []
        while None not in (tensors := [next(rounds, None) for rounds in running]):
            total = tensors[0].clone()
            for tensor in tensors[1:]:
                total += tensor
            for tensor in tensors:
                tensor.copy_(total)
            sizes.append(total.numel())
        assert tensors == [None] * REPLICAS
        return [bucket.flat.clone() for bucket in self.buckets], sizes

    def random(self, seed, magnitude=1.0):
        generator = torch.Generator().manual_seed(seed)
        flat = self.buckets[0].flat
        return [magnitude * torch.randn(flat.shape, generator=generator, dtype=flat.dtype) for _ in self.buckets]


def power_sgd(rank, scaler=NO_SCALER):
    return lambda buckets: PowerSGD(buckets, rank, scaler, seed=3)


def errors_of(compression) -> torch.Tensor:
    return torch.cat([error.flatten() for error in compression.state_dict()["buckets"][0]["errors"]])


def matrices_of(flat: torch.Tensor) -> torch.Tensor:
    """The elements of ``flat`` that belong to the two matrices."""
    first, _, second, _ = flat.split([torch.Size(shape).numel() for shape in SHAPES])
    return torch.cat([first, second])


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 10.0])
def test_sixteen_bits_are_off_by_their_rounding(dtype, unit, magnitude):
    replicas = Replicas(lambda buckets: SixteenBit(buckets, dtype, loss_is_scaled=False), dtype=torch.float32)
    gradients = replicas.random(1, magnitude)
    sums, sizes = replicas.exchange(gradients)
    # A rounding per cast and per addition, each relative to a partial sum of magnitudes; the last term is half of
    # fp16's smallest number per rounding, which counts where numbers are smaller than 6e-5 / 1024.
    bound = 2 * REPLICAS * (unit * sum(g.abs() for g in gradients) + 2.0**-25 / SixteenBit.FP16_SCALE)
    assert sizes == [gradients[0].numel()]
    for got in sums:
        assert ((got - sum(gradients)).abs() <= bound).all()
        assert torch.equal(got, sums[0])


def test_fp16_without_its_scale_would_lose_small_gradients():
    kept, lost = (Replicas(lambda buckets, scaled=scaled: SixteenBit(buckets, torch.float16, scaled),
                           dtype=torch.float32) for scaled in (False, True))
    gradients = kept.random(1, 1e-8)
    assert kept.exchange(gradients)[0][0].count_nonzero() > 0.9 * gradients[0].numel()
    assert lost.exchange(gradients)[0][0].count_nonzero() < 0.2 * gradients[0].numel()


def test_fp16_overflow_is_infinite_on_all_replicas_and_not_clipped():
    replicas = Replicas(lambda buckets: SixteenBit(buckets, torch.float16, False), dtype=torch.float32)
    gradients = [torch.full_like(replicas.buckets[0].flat, 30.0) for _ in range(REPLICAS)]  # 90 > 65504 / 1024
    assert all(torch.isinf(got).all() for got in replicas.exchange(gradients)[0])


@pytest.mark.parametrize(("rows", "columns", "rank", "expected"), [
    (512, 4608, 4, 4), (64, 27, 4, 4), (10, 64, 16, 0), (4, 4, 1, 1), (2, 2, 1, 0), (1, 100, 4, 0), (3, 3, 9, 0),
])
def test_factors_are_sent_where_they_are_smaller(rows, columns, rank, expected):
    assert rank_worth_sending(rows, columns, rank) == expected


def test_powersgd_sends_factors_and_the_rest_in_two_all_reduces():
    replicas = Replicas(power_sgd(2))
    _, sizes = replicas.exchange(replicas.random(0))
    vectors = 24 + 2 * 3
    assert sizes == [(24 + 16) * 2 + vectors, (36 + 24) * 2]
    assert Replicas(power_sgd(2), [(7,), (2, 2)]).exchange([torch.ones(11).double()] * REPLICAS)[1] == [11]


def test_powersgd_is_exact_for_gradients_of_its_rank():
    replicas = Replicas(power_sgd(REPLICAS))
    gradients = replicas.random(0)
    for gradient in gradients:  # each replica's matrices of rank 1, so their sum has rank 3
        for piece, shape in zip(gradient.split([864, 24, 384, 6]), [(24, 36), None, (16, 24), None], strict=True):
            if shape:
                piece.copy_(torch.outer(*(torch.randn(n, dtype=torch.float64) for n in shape)).flatten())
    for got in replicas.exchange(gradients)[0]:
        torch.testing.assert_close(got, sum(gradients), rtol=1e-9, atol=1e-9)


def test_what_powersgd_has_not_sent_is_in_the_errors():
    replicas = Replicas(power_sgd(2))
    sent = wanted = 0
    for step in range(6):
        weights = torch.tensor([0.6, 0.4, 0.0]) if step == 2 else torch.full((3,), 1 / 3)  # an empty share
        gradients = [weight * gradient for weight, gradient in zip(weights, replicas.random(step), strict=True)]
        sums, _ = replicas.exchange(gradients)
        assert all(torch.equal(got, sums[0]) for got in sums)
        sent, wanted = sent + sums[0], wanted + sum(gradients)
    errors = sum(errors_of(c) for c in replicas.compressions)
    assert errors.norm() > 0.1 * wanted.norm()
    torch.testing.assert_close(matrices_of(sent), matrices_of(wanted) - errors, rtol=1e-9, atol=1e-9)
    vectors = slice(864, 864 + 24)
    torch.testing.assert_close(sent[vectors], wanted[vectors])


def test_powersgd_recovers_from_a_step_without_gradients():
    replicas = Replicas(power_sgd(2))
    replicas.exchange([torch.zeros_like(g) for g in replicas.random(0)])
    gradients = replicas.random(1)
    total, remembered = sum(gradients), 0
    for _ in range(60):
        remembered = remembered + replicas.exchange(gradients)[0][0]
    # With error feedback the mean of what is sent approaches the constant gradient as 1 / steps.
    assert (remembered / 60 - total).norm() < 0.3 * total.norm()


def test_powersgd_goes_on_from_its_state():
    one, other = Replicas(power_sgd(2)), Replicas(power_sgd(2))
    for step in range(3):
        one.exchange(one.random(step))
    for saved, restored in zip(one.compressions, other.compressions, strict=True):
        restored.load_state_dict(saved.state_dict())
    assert torch.equal(one.exchange(one.random(9))[0][0], other.exchange(one.random(9))[0][0])


def test_powersgd_under_a_loss_scaler():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    scaled, plain = Replicas(power_sgd(2, scaler)), Replicas(power_sgd(2))
    for step, factor in enumerate([1024.0, 512.0, 2.0]):  # powers of two change no digits
        scaler.update(new_scale=factor)
        gradients = plain.random(step)
        expected, _ = plain.exchange(gradients)
        got, _ = scaled.exchange([factor * gradient for gradient in gradients])
        torch.testing.assert_close(got[0] / factor, expected[0], rtol=1e-9, atol=1e-9)
    overflowed = scaled.random(4)
    overflowed[1][0] = torch.inf
    sums, _ = scaled.exchange(overflowed)
    assert not any(got.isfinite().all() for got in sums)  # so that every replica skips the step
    assert all((errors_of(c) == 0).all() for c in scaled.compressions)
    assert scaled.exchange(scaled.random(5))[0][0].isfinite().all()
