"""Gates: what passes, what is noise, and which gradient the width gets."""

import math

import pytest
import torch
from scipy.stats import norm

from noisegate.baselines.gates import HardConcreteGate, STGGate
from noisegate.gate import NoiseGate, _Mix

KINDS = [NoiseGate, HardConcreteGate, STGGate]
ends = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def passes(gate, x, std=None):
    """One forward pass through the gate."""
    std = torch.ones(gate.size) if std is None else std
    return gate.mix(x, std.square(), gate.training)


@pytest.mark.parametrize("ramp", [1, 4])
@pytest.mark.parametrize("training", [True, False])
def test_an_open_gate_hands_its_input_on(ramp, training):
    """A fully open noise gate returns the very same tensor."""
    gate = NoiseGate(10, ramp=ramp).train(training)
    x = torch.randn(2, 3, 10)
    assert passes(gate, x) is x
    gate.freeze(10)
    assert passes(gate, x) is x


def test_an_open_stochastic_gate_hands_its_input_on_in_evaluation():
    """All channels pass in evaluation at the initial width."""
    gate = HardConcreteGate(10).eval()
    x = torch.randn(2, 3, 10)
    assert passes(gate, x) is x


@pytest.mark.parametrize("ramp", [1, 3, 4.5])
def test_channels_by_hand(ramp):
    """Below K as it was, above K + ramp exactly zero, between neither."""
    gate = NoiseGate(12, ramp=ramp)
    gate.set_width(5.5)
    x = torch.randn(4, 12) + 3
    y = passes(gate, x)
    ranks = torch.arange(12)
    g = ((5.5 - ranks - 1) / ramp + 1).clamp(0, 1)
    assert torch.equal(y[:, g == 1], x[:, g == 1])
    assert (y[:, g == 0] == 0).all()
    edge = (g > 0) & (g < 1)
    assert edge.sum() == {1: 1, 3: 3, 4.5: 4}[ramp]
    assert (y[:, edge] != x[:, edge]).all()
    assert (y[:, edge] != 0).all()
    torch.testing.assert_close(gate.channel_weights(True), g)


@pytest.mark.parametrize("g", [0.1, 0.5, 0.9])
def test_a_feature_at_the_edge_keeps_its_variance(g):
    """Variance stays, correlation with the clean feature is sqrt(g)."""
    torch.manual_seed(0)
    gate = NoiseGate(4, ramp=1)
    gate.set_width(2 + g)
    x = 3 * torch.randn(200_000, 4)
    std = torch.tensor([3.0, 3.0, 3.0, 3.0])
    y = passes(gate, x, std).detach()
    assert abs(float(y[:, 2].detach().std()) / 3 - 1) < 0.01
    correlation = torch.corrcoef(torch.stack([x[:, 2], y[:, 2]]))[0, 1]
    assert abs(float(correlation) - math.sqrt(g)) < 0.01
    # The noise is drawn anew for each value
    noise = y[:, 2] - math.sqrt(g) * x[:, 2]
    together = torch.corrcoef(torch.stack([noise[1:], noise[:-1]]))[0, 1]
    assert abs(float(together)) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([noise, x[:, 2]]))[0, 1])) < (
        0.01
    )


def test_features_that_share_a_channel():
    """With an index all features of a channel have its gate, own noise."""
    torch.manual_seed(0)
    gate = NoiseGate(3, ramp=1)
    gate.set_width(1.25)
    index = torch.arange(6) % 3
    x = torch.randn(100_000, 6)
    y = gate.mix(x, torch.ones(3), True, index=index).detach()
    assert torch.equal(y[:, [0, 3]], x[:, [0, 3]])
    assert (y[:, [2, 5]] == 0).all()
    for feature in (1, 4):
        pair = torch.stack([x[:, feature], y[:, feature]])
        assert abs(float(torch.corrcoef(pair)[0, 1]) - 0.5) < 0.02
    noise = y[:, [1, 4]] - 0.5 * x[:, [1, 4]]
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 0.02


@pytest.mark.parametrize("dim", [-1, -2, -3, 1])
def test_any_dimension_can_be_gated(dim):
    """The gate acts along ``dim`` only."""
    gate = NoiseGate(5, ramp=1)
    gate.set_width(2)
    shape = [4, 6, 7, 8]
    shape[dim] = 5
    x = torch.randn(shape)
    y = gate.mix(x, torch.ones(5), True, dim=dim).movedim(dim, 0)
    assert torch.equal(y[:2], x.movedim(dim, 0)[:2])
    assert (y[2:] == 0).all()


@pytest.mark.parametrize("ramp", [1.0, 4.0])
@pytest.mark.parametrize("where", ["integer", "above", "below", "min", "max"])
def test_the_gradient_of_the_width_is_finite(ramp, where):
    """At integers, next to them and at the bounds."""
    torch.manual_seed(0)
    gate = NoiseGate(16, kappa_min=0.25, ramp=ramp)
    width = {
        "integer": 7,
        "above": 7 + 1e-6,
        "below": 7 - 1e-6,
        "min": 4,
        "max": 16,
    }[where]
    gate.set_width(width)
    x = torch.randn(50, 16, requires_grad=True)
    loss = (passes(gate, x) - x.detach()).square().sum() + gate.width()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(gate.kappa.grad).all()
    assert torch.isfinite(x.grad).all()
    assert gate.kappa.grad.abs() < 1e6


@pytest.mark.parametrize("width", [5.5, 5.01, 5.99, 5.999999])
@pytest.mark.parametrize("ramp", [1.0, 4.0])
def test_a_useful_feature_pulls_the_width_up(width, ramp):
    """Closing a feature that the loss needs raises the loss."""
    torch.manual_seed(0)
    gate = NoiseGate(10, ramp=ramp)
    gate.set_width(width)
    x = torch.randn(5000, 10)
    loss = (passes(gate, x).sum(1) - x.sum(1)).square().mean()
    loss.backward()
    assert gate.kappa.grad < -0.01


def test_a_useless_feature_does_not():
    """Noise in a feature that nothing reads leaves no gradient."""
    gate = NoiseGate(10, ramp=1)
    gate.set_width(5.5)
    (passes(gate, torch.randn(50, 10))[:, :2].sum()).backward()
    assert gate.kappa.grad == 0


def test_the_gradient_matches_the_slope_of_the_expected_loss():
    """Away from the ends the bounded square roots change nothing."""
    gate = NoiseGate(4, ramp=1)
    x = torch.randn(100, 4, dtype=torch.float64)
    gate.double()

    def loss(width):
        torch.manual_seed(3)
        gate.set_width(width)
        y = passes(gate, x, torch.ones(4, dtype=torch.float64))
        return (y - x).square().sum()

    value = loss(2.4)
    value.backward()
    slope = float(gate.kappa.grad) / gate.size
    step = 1e-5
    with torch.no_grad():
        expected = (loss(2.4 + step) - loss(2.4 - step)) / (2 * step)
    assert slope == pytest.approx(float(expected), rel=1e-6)


@ends
def test_no_nan_at_random_widths(kind):
    """Values and gradients are finite wherever the width is."""
    torch.manual_seed(0)
    for _ in range(200):
        size = int(torch.randint(1, 20, (1,)))
        gate = kind(size)
        low = gate.min_width
        gate.set_width(low + float(torch.rand(1)) * (size - low))
        x = torch.randn(5, size, requires_grad=True)
        y = passes(gate, x, torch.rand(size))
        (y.square().sum() + gate.width()).backward()
        assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
        for parameter in gate.parameters():
            assert torch.isfinite(parameter.grad).all()


@ends
def test_the_width_has_a_gradient_at_its_bounds(kind):
    """At the smallest and the full width the complexity still pulls."""
    gate = kind(8, kappa_min=0.5)
    for width in (4, 8):
        gate.zero_grad()
        gate.set_width(width)
        gate.width().backward()
        gradient = next(gate.parameters()).grad
        assert gradient.abs().sum() > 0
        assert torch.isfinite(gradient).all()


@ends
def test_the_width_stays_in_its_bounds(kind):
    """Also after a wild step of the optimizer."""
    gate = kind(8, kappa_min=0.5)
    for value in (-100.0, 100.0):
        with torch.no_grad():
            next(gate.parameters()).fill_(value)
        assert 4 <= float(gate.width().detach()) <= 8
        gate.clamp()
        assert 4 <= float(gate.width().detach()) <= 8
        assert 4 <= gate.integer_width() <= 8
    if kind is NoiseGate:
        with torch.no_grad():
            gate.kappa.fill_(-3)
        gate.clamp()
        assert float(gate.kappa) == 0.5


@ends
@pytest.mark.parametrize("freeze", [False, True])
def test_evaluation_draws_nothing(kind, freeze):
    """Deterministic, 0 or 1, and the random state stays as it is."""
    gate = kind(9)
    gate.set_width(4.5)
    if freeze:
        gate.freeze(5)  # also in training mode
    else:
        gate.eval()
    x = torch.randn(3, 9)
    before = torch.get_rng_state()
    y = passes(gate, x)
    assert torch.equal(y, passes(gate, x))
    assert torch.equal(before, torch.get_rng_state())
    weights = gate.channel_weights(gate.training)
    assert weights.sum() == gate.integer_width() == 5
    assert torch.equal(y[:, :5], x[:, :5]) and (y[:, 5:] == 0).all()


@pytest.mark.parametrize(
    "width, granularity, expected",
    [(3.2, 1, 4), (3.0, 1, 3), (3.2, 4, 4), (4.1, 4, 8), (9, 4, 12)]
    + [(12, 4, 12), (1, 4, 4), (1, 6, 6), (7, 6, 12)],
)
@ends
def test_integer_widths_are_multiples(kind, width, granularity, expected):
    """Rounded up to the granularity."""
    gate = kind(12, granularity=granularity)
    gate.set_width(width)
    assert gate.integer_width() == expected


@pytest.mark.parametrize(
    "size, kappa, granularity, expected",
    [(80, 0.0625, 1, 5), (80, 0.06, 1, 5), (10, 0.1, 1, 1), (10, 0.01, 1, 1)]
    + [(10, 1, 1, 10), (12, 0.5, 4, 8), (100, 0.07, 1, 7)],
)
@ends
def test_the_smallest_width(kind, size, kappa, granularity, expected):
    """kappa_min times the size, rounded up to the granularity."""
    gate = kind(size, kappa_min=kappa, granularity=granularity)
    assert gate.min_width == expected
    gate.freeze(expected)
    assert gate.integer_width() == expected


@ends
def test_freezing_checks_the_width(kind):
    """Out of bounds or no multiple is an error, and nothing is frozen."""
    gate = kind(12, kappa_min=0.5, granularity=3)
    for width in (3, 7, 13, 15, 0, -1):
        with pytest.raises(ValueError, match="multiple of 3"):
            gate.freeze(width)
    assert gate.frozen is None
    gate.freeze(9)
    assert gate.frozen == gate.integer_width() == float(gate.width()) == 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{"kappa_min": 0}, {"kappa_min": 1.1}, {"granularity": 5}]
    + [{"granularity": 0}],
)
def test_options_are_checked(kind, options):
    """Errors at construction, not during training."""
    with pytest.raises(ValueError):
        kind(12, **options)


def test_options_of_one_kind_are_checked():
    """Ramp and the stretch of the hard-concrete distribution."""
    with pytest.raises(ValueError):
        NoiseGate(12, ramp=0.5)
    for options in ({"open_init": 1}, {"gamma": 0.1}, {"zeta": 1}):
        with pytest.raises(ValueError):
            HardConcreteGate(12, **options)


def test_reordering_moves_what_is_closed():
    """The least useful channels go first, their number stays."""
    gate = NoiseGate(6)
    gate.reorder(torch.tensor([0.1, 5.0, 0.2, 4.0, 3.0, 0.3]))
    gate.set_width(3)
    assert gate.open_channels().tolist() == [1, 3, 4]
    assert sorted(gate.rank.tolist()) == list(range(6))
    assert gate.rank[1] == 0 and gate.rank[0] == 5
    gate.eval()
    y = passes(gate, torch.ones(1, 6))
    assert y[0].tolist() == [0, 1, 0, 1, 1, 0]


def test_equally_useful_channels_keep_their_order():
    """Ties are stable, so nothing moves without a reason."""
    gate = NoiseGate(6)
    gate.reorder(torch.ones(6))
    assert gate.rank.tolist() == list(range(6))


def test_the_edge_follows_the_order():
    """The noise is in the channel that the rank puts at the edge."""
    gate = NoiseGate(4, ramp=1)
    gate.reorder(torch.tensor([1.0, 4.0, 2.0, 3.0]))
    gate.set_width(2.5)
    x = torch.randn(10, 4)
    y = passes(gate, x)
    assert torch.equal(y[:, [1, 3]], x[:, [1, 3]])
    assert (y[:, 0] == 0).all()
    assert (y[:, 2] != x[:, 2]).all() and (y[:, 2] != 0).all()


@pytest.mark.parametrize("width", [1.0, 3.0, 4.5, 8.0])
@pytest.mark.parametrize("ramp", [1.0, 3.0])
def test_reordering_changes_nothing_now(width, ramp):
    """Only open channels are ranked: output and gradient stay, to the bit."""
    torch.manual_seed(0)
    gate = NoiseGate(8, ramp=ramp)
    gate.reorder(torch.rand(8))
    gate.set_width(width)
    x = torch.randn(5, 8)

    def outcome():
        results = []
        for training in (True, False):
            torch.manual_seed(1)
            gate.zero_grad()
            y = passes(gate.train(training), x)
            results += [y.detach().clone()]
            if y.requires_grad:
                y.square().sum().backward()
                results += [gate.kappa.grad.clone()]
        return results

    before, ranks = outcome(), gate.rank.clone()
    gate.reorder(torch.rand(8))
    for old, new in zip(before, outcome()):
        assert torch.equal(old, new)
    assert sorted(gate.rank.tolist()) == list(range(8))
    closed = ranks >= int(width)
    assert torch.equal(gate.rank[closed], ranks[closed])


def test_reordering_brings_the_least_useful_to_the_edge():
    """Of the open channels; closed ones stay, however useful."""
    gate = NoiseGate(6, ramp=1)
    gate.set_width(4)
    gate.reorder(torch.tensor([1.0, 4.0, 2.0, 3.0, 9.0, 8.0]))
    assert gate.rank.tolist() == [3, 0, 2, 1, 4, 5]


def test_a_frozen_gate_is_not_reordered():
    """What is cut is final."""
    gate = NoiseGate(6)
    gate.freeze(3)
    gate.reorder(torch.arange(6.0))
    assert gate.open_channels().tolist() == [0, 1, 2]


def hard_concrete(log_alpha, n):
    """n draws of a gate with the given parameter."""
    gate = HardConcreteGate(n)
    with torch.no_grad():
        gate.location.fill_(log_alpha)
    return gate, gate.channel_weights(True).detach()


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.0, 4.0])
def test_probability_of_a_closed_stochastic_gate(log_alpha):
    """P(z = 0) is the published formula, the width the mean number open."""
    torch.manual_seed(0)
    n = 200_000
    gate, z = hard_concrete(log_alpha, n)
    closed = 1 / (1 + math.exp(log_alpha - 2 / 3 * math.log(0.1 / 1.1)))
    assert float((z == 0).double().mean()) == pytest.approx(closed, abs=4e-3)
    expected = float(gate.width()) / n
    assert float((z != 0).double().mean()) == pytest.approx(expected, abs=4e-3)
    assert z.min() >= 0 and z.max() <= 1
    assert (z == 1).any() or log_alpha < -2


@pytest.mark.parametrize("mu", [-0.6, 0.0, 0.5, 1.2])
def test_probabilities_of_gaussian_gates(mu):
    """Of 0 and of 1 they are those of a clipped normal distribution."""
    torch.manual_seed(0)
    n = 200_000
    gate = STGGate(n, mu_init=mu)
    z = gate.channel_weights(True).detach()
    closed = norm.cdf(0, loc=mu, scale=0.5)
    assert float((z == 0).double().mean()) == pytest.approx(closed, abs=4e-3)
    whole = norm.sf(1, loc=mu, scale=0.5)
    assert float((z == 1).double().mean()) == pytest.approx(whole, abs=4e-3)
    width = float(torch.special.ndtr(gate.location / 0.5).sum())
    bounded = max(width, gate.min_width)
    assert float(gate.width()) == pytest.approx(bounded, rel=1e-5)
    assert float(gate.width()) / n == pytest.approx(1 - closed, abs=1e-5)


def test_stochastic_gates_differ_between_steps():
    """All layers of a training step see the same ones, with gradients."""
    gate = HardConcreteGate(50, open_init=0.5)
    first, other = gate.channel_weights(True), gate.channel_weights(True)
    assert torch.equal(first, other)
    (first.sum() + other.sum()).backward()
    torch.optim.SGD(gate.parameters(), 1e-3).step()
    assert (gate.channel_weights(True) - first).abs().max() > 0.5


@pytest.mark.parametrize("width", [1, 3.7, 8, 15.5])
def test_setting_the_width_of_stochastic_gates(width):
    """Keeps the order and gives the expected width asked for."""
    torch.manual_seed(0)
    gate = HardConcreteGate(16)
    with torch.no_grad():
        gate.location.add_(torch.randn(16))
    before = gate.order()
    gate.set_width(width)
    assert float(gate.width()) == pytest.approx(width, abs=1e-3)
    assert torch.equal(gate.order(), before)


def test_stochastic_gates_keep_the_likeliest():
    """Freezing closes the channels of lowest log_alpha."""
    gate = HardConcreteGate(5)
    with torch.no_grad():
        gate.location.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1, 1.0]))
    gate.freeze(3)
    assert gate.open_channels().tolist() == [0, 2, 4]
    with torch.no_grad():  # final, whatever happens to the parameter
        gate.location.neg_()
    assert gate.open_channels().tolist() == [0, 2, 4]


@ends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_stays(kind, dtype):
    """A half-precision input gives a half-precision output."""
    gate = kind(8)
    gate.set_width(4.5)
    x = torch.randn(3, 8).to(dtype)
    assert passes(gate, x).dtype == dtype
    passes(gate, x).float().sum().backward()
    assert torch.isfinite(next(gate.parameters()).grad).all()


@ends
@pytest.mark.parametrize("frozen", [False, True])
def test_state_is_kept(kind, frozen):
    """Width, order and freezing survive saving and loading."""
    torch.manual_seed(0)
    gate, other = kind(8), kind(8)
    gate.reorder(torch.rand(8))
    gate.set_width(4.5)
    if kind is not NoiseGate:
        with torch.no_grad():
            gate.location.add_(torch.randn(8))
    if frozen:
        gate.freeze(5)
    assert other.frozen is None  # reads the state once: loading must reset
    other.load_state_dict(gate.state_dict())
    assert other.frozen == gate.frozen
    assert torch.equal(other.width(), gate.width())
    assert torch.equal(other.open_channels(), gate.open_channels())
    assert other.integer_width() == gate.integer_width()


def test_loading_an_unfrozen_state_unfreezes():
    """A gate goes back to an earlier checkpoint."""
    gate = NoiseGate(8)
    state = {k: v.clone() for k, v in gate.state_dict().items()}
    gate.freeze(4)
    gate.load_state_dict(state)
    assert gate.frozen is None
    assert float(gate.width()) == 8


@ends
def test_a_frozen_width_has_a_zero_gradient(kind):
    """A gradient is there, as distributed training needs, but zero."""
    gate = kind(8)
    gate.freeze(4)
    gate.width().backward()
    assert (next(gate.parameters()).grad == 0).all()


@ends
def test_tied_weights(kind):
    """A second set of channels keeps the same share of its channels."""
    gate = kind(16, granularity=4)
    gate.freeze(8)
    assert gate.tied_weights(4, True).tolist() == [1, 1, 0, 0]
    gate = NoiseGate(16, ramp=1)
    gate.set_width(10)
    assert gate.tied_weights(4, True).tolist() == [1, 1, 0.5, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_gradients_of_mixing(dtype, dim):
    """Those of what it computes, by finite differences, for a fixed noise."""
    gate = NoiseGate(8, ramp=3.0).double()
    x = torch.randn(8, 8, 8, dtype=dtype, requires_grad=True)
    variance = torch.rand(8, dtype=torch.float64) + 0.5

    def mixed(x, kappa):
        # No channel may reach an end, or come nearer than the margin
        torch.manual_seed(0)
        with torch.no_grad():
            gate.kappa.copy_(kappa)
        factors, table, edge = gate._edge()
        std = variance[edge].sqrt()
        table = torch.cat([table[:1, edge], table[1:, edge] * std])
        return _Mix.apply(x, kappa, factors, edge, table, dim, None)

    kappa = torch.tensor([0.55], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixed, (x, kappa), nondet_tol=0.0)


def test_loaded_ranks_are_those_that_count():
    """With tensors that take the place of those that were there."""
    gate, other = NoiseGate(8, ramp=1.0), NoiseGate(8, ramp=1.0)
    with torch.no_grad():
        other.rank = torch.arange(8).flip(0)
    for one in (gate, other):
        one.set_width(4)
    x = torch.ones(2, 8)
    assert gate.mix(x, torch.ones(8), True)[0].tolist() == [1] * 4 + [0] * 4
    gate.load_state_dict(other.state_dict(), assign=True)
    assert gate.mix(x, torch.ones(8), True)[0].tolist() == [0] * 4 + [1] * 4


def test_what_is_masked_is_what_is_cut():
    """Also where a width lies at the border of two integers."""
    gate = NoiseGate(1024)
    for width in torch.linspace(512, 512.0004, 30):
        gate.set_width(float(width))
        kept = int(gate.channel_weights(training=False).sum())
        assert kept == gate.integer_width() == len(gate.open_channels())


@pytest.mark.parametrize("width, ramp", [(96, 4), (48.5, 3.03125), (7.5, 1)])
def test_a_ramp_that_follows_the_width(width, ramp):
    """A sixteenth of it, from 1 to 4: as with the ramp given."""
    made = []
    for given in (None, ramp):
        gate = NoiseGate(size=100, kappa_min=0.01, ramp=given)
        gate.set_width(width)
        torch.manual_seed(0)
        x = torch.ones(3, 100)
        y = gate.mix(x, torch.ones(100), training=True)
        y.sum().backward()
        weights = gate.channel_weights(training=True)
        made.append((weights.detach(), (y != 1).sum(), gate.kappa.grad))
    assert torch.allclose(made[0][0], made[1][0])
    assert made[0][1] == made[1][1]
    open_ = (made[0][0] == 1).sum()
    assert width - 1 - ramp < open_ <= width
