"""What every optimizer of LoRA pairs must do, whatever its method."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from least_squares import OPTIMIZERS, Problem, S, first_moved, random
from torch import nn

from sdslora.optim import Loft

pytestmark = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def assert_same(ours, expected) -> None:
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, atol=0, rtol=0)


def reloaded(state):
    """``state`` as a checkpoint file gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_rate_of_zero_moves_nothing(make):
    problem = Problem()
    before = problem.values()
    optimizer = make(problem.params, lr=0.0, weight_decay=0.1)
    problem.train(optimizer, 2)
    assert_same(problem.values(), before)
    # the rate is read at every step
    optimizer.param_groups[0]["lr"] = 1e-3
    problem.train(optimizer, 2)
    assert all(not torch.equal(x, y) for x, y in zip(problem.values(), before, strict=True))


def test_the_first_factors_step_is_proportional_to_the_rate(make):
    moves = []
    for lr in (1e-3, 2e-3):
        problem = Problem()
        before = problem.values()
        optimizer = make(problem.params, lr=lr)
        problem.train(optimizer, 1)
        changes = [x - y for x, y in zip(problem.values(), before, strict=True)]
        moves.append(first_moved(optimizer, changes))
    for one, other in zip(*moves, strict=True):
        torch.testing.assert_close(2 * one, other, atol=1e-14, rtol=1e-11)


def test_weight_decay_shrinks_by_rate_times_decay(make):
    problem = Problem()
    before = problem.values()
    for parameter in problem.params:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make(problem.params, lr=0.1, weight_decay=0.2)
    for _ in range(2 if isinstance(optimizer, Loft) else 1):
        optimizer.step()
    for value, start in zip(problem.values(), before, strict=True):
        torch.testing.assert_close(value, (1 - 0.1 * 0.2) * start, atol=1e-15, rtol=1e-15)


def test_weight_decay_is_decoupled_from_the_moments(make):
    plain, decayed = Problem(), Problem()
    optimizers = [
        make(problem.params, lr=1e-3, weight_decay=decay)
        for problem, decay in ((plain, 0.0), (decayed, 0.5))
    ]
    plain.train(optimizers[0], 1)
    decayed.train(optimizers[1], 1)
    moved = [first_moved(optimizers[0], problem.params) for problem in (plain, decayed)]
    for parameter, other in zip(*moved, strict=True):
        assert not torch.equal(parameter, other)
        for name, value in optimizers[0].state[parameter].items():
            assert torch.equal(value, optimizers[1].state[other][name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_resumed_training_is_the_uninterrupted_one(make, dtype):
    """Stopped at step 13, which is within a block of an alternation."""
    problem = Problem(dtype=dtype)
    optimizer = make(problem.params, lr=1e-2, weight_decay=0.1)
    problem.train(optimizer, 13)
    resumed = copy.deepcopy(problem)
    fresh = make(resumed.params, lr=1.0)
    fresh.load_state_dict(reloaded(optimizer.state_dict()))
    problem.train(optimizer, 12)
    resumed.train(fresh, 12)
    assert_same(resumed.values(), problem.values())
    for p, q in zip(problem.params, resumed.params, strict=True):
        for name, value in optimizer.state[p].items():
            other = fresh.state[q][name]
            assert other.dtype == value.dtype
            assert torch.equal(other, value)


def test_stacked_layers_are_stepped_like_single_ones(make):
    together, alone = Problem(), Problem()
    together.train(make(together.params, lr=1e-2), 12)
    for optimizer in [make(list(pair), lr=1e-2) for pair in alone.pairs]:
        alone.train(optimizer, 12)
    for x, y in zip(together.values(), alone.values(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-12)


def test_half_precision_parameters_move_in_half_precision(make):
    """The first factor's step is the float32 step, rounded once."""
    half = Problem(dtype=torch.bfloat16)
    full = copy.deepcopy(half)
    full.pairs = [tuple(nn.Parameter(p.detach().float()) for p in pair) for pair in full.pairs]
    half.backward()
    for p, q in zip(half.params, full.params, strict=True):
        q.grad = p.grad.float()
    before = half.values()
    optimizer = make(half.params, lr=1e-2)
    optimizer.step()
    make(full.params, lr=1e-2).step()
    moved = [first_moved(optimizer, problem.values()) for problem in (half, full)]
    for value, exact in zip(*moved, strict=True):
        assert torch.equal(value, exact.bfloat16())
    half.train(optimizer, 1)
    for value, start in zip(half.values(), before, strict=True):
        assert value.dtype == torch.bfloat16
        assert not torch.equal(value, start)
    for parameter in half.params:
        assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32


def test_a_pair_without_gradients_is_left_alone(make):
    problem, rest = Problem(), Problem()
    optimizer = make(problem.params, lr=1e-2, weight_decay=0.1)
    reference = make([p for pair in rest.pairs[1:] for p in pair], lr=1e-2, weight_decay=0.1)
    before = problem.values()
    for _ in range(2):
        problem.backward()
        problem.params[0].grad = problem.params[1].grad = None
        optimizer.step()
        rest.train(reference, 1)
    assert_same(problem.values()[:2], before[:2])
    assert not optimizer.state[problem.params[0]]
    for x, y in zip(problem.values()[2:], rest.values()[2:], strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-12)
    # it begins later, with step 1 of its own, beside layers of its shape that are at step 3
    problem.train(optimizer, 1)
    rest.train(reference, 1)
    rest.train(make(list(rest.pairs[0]), lr=1e-2, weight_decay=0.1), 1)
    assert [int(optimizer.state[p]["step"]) for p in problem.params[:4]] == [1, 1, 3, 3]
    for x, y in zip(problem.values(), rest.values(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-12)


def test_training_decreases_the_loss(make):
    problem = Problem(zero_B=True)
    first = sum(problem.losses()).item()
    optimizer = make(problem.params, lr=2e-2)
    problem.train(optimizer, 100)
    # r of min(m, n) directions can be fitted: a fifth at the least
    assert sum(problem.losses()).item() < 0.8 * first


def test_other_parameters_are_adamws(make):
    problem = Problem()
    shapes = [(5,), (4, 3), (2, 3, 2), ()]
    foreign = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    twins = copy.deepcopy(foreign)
    flag = make(problem.params).own
    groups = [{"params": problem.params}, {"params": foreign, flag: False, "eps": 1e-8}]
    optimizer = make(groups, lr=1e-2, weight_decay=0.1)
    expected = torch.optim.AdamW(twins, lr=1e-2, weight_decay=0.1)
    for step in range(10):
        problem.backward()
        for i, (p, q) in enumerate(zip(foreign, twins, strict=True)):
            # the last has no gradient at first
            p.grad = None if i == 3 and step < 4 else random(*p.shape, seed=10 * step + i)
            q.grad = p.grad
        optimizer.step()
        expected.step()
    for p, q in zip(foreign, twins, strict=True):
        torch.testing.assert_close(p, q, atol=1e-12, rtol=1e-12)


def test_a_closure_is_evaluated_first(make):
    problem, plain = Problem(), Problem()
    optimizer = make(problem.params, lr=1e-2)

    def closure() -> float:
        problem.backward()
        return sum(problem.losses()).item()

    loss = sum(problem.losses()).item()
    assert optimizer.step(closure) == loss
    plain.train(make(plain.params, lr=1e-2), 1)
    assert_same(problem.values(), plain.values())


def test_a_convolutions_weights_are_their_matrices(make):
    """A (r, c, k, k) and B (m, r, 1, 1) move as (r, ckk) and (m, r) do."""
    A, B = random(3, 2, 2, 2, seed=1), random(5, 3, 1, 1, seed=2)
    conv = [nn.Parameter(x.clone()) for x in (A, B)]
    flat = [nn.Parameter(x.flatten(1).clone()) for x in (A, B)]
    optimizers = make(conv, lr=1e-2), make(flat, lr=1e-2)
    for step in range(4):
        for p, q in zip(conv, flat, strict=True):
            p.grad = random(*p.shape, seed=10 + step)
            q.grad = p.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    for p, q, start in zip(conv, flat, (A, B), strict=True):
        assert not torch.equal(p, start)
        torch.testing.assert_close(p.flatten(1), q, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-3}, "lr must not be negative, got -0.001"),
        ({"lr": float("nan")}, "lr must not be negative, got nan"),
        ({"betas": (1.0, 0.9)}, r"betas must be in \[0, 1\), got \(1.0, 0.9\)"),
        ({"betas": (0.9, -0.1)}, r"betas must be in \[0, 1\)"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
    ],
)
def test_options_out_of_range_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(Problem().params, **options)
    # a group's own options too
    with pytest.raises(ValueError, match=message):
        make([{"params": Problem().params, **options}])


def test_groups_of_two_scalings(make):
    """Each group's options are its own: one half of the pairs at another rate, and scaling."""
    problem, alone = Problem(), Problem()
    groups = [
        {"params": problem.params[:4], "lr": 1e-2},
        {"params": problem.params[4:], "lr": 3e-2},
    ]
    optimizer = make(groups)
    if "scaling" in optimizer.defaults:
        optimizer.param_groups[1]["scaling"] = 2 * S
    problem.train(optimizer, 3)
    for part, lr, scaling in ((alone.params[:4], 1e-2, S), (alone.params[4:], 3e-2, 2 * S)):
        single = make(part, lr=lr)
        if "scaling" in single.defaults:
            single.param_groups[0]["scaling"] = scaling
        alone.train(single, 3)
    assert_same(problem.values(), alone.values())
