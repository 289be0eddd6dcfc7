"""Mask-and-replace diffusion against transition matrices multiplied out, and its bound by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.priors import diffusion, timesteps
from regvq_jax.priors.diffusion_schedules import (
    SCHEDULES,
    end_kl,
    grid_jumps,
    make_schedule,
    single_jumps,
)

# Total alpha and gamma at t = 1 .. T, told apart from the package's own code.
TOTALS = {
    "paper": lambda T: (1 - np.arange(1, T + 1) / T, 0.9 * np.arange(1, T + 1) / T),
    "released": lambda T: (np.linspace(0.99999, 9e-6, T), np.linspace(9e-6, 0.99999, T)),
}


def matrix(alpha, gamma, num_codes):
    """Transition matrix [K + 1, K + 1] of one token, from the row to the column, the mask last."""
    result = np.zeros((num_codes + 1, num_codes + 1))
    result[:num_codes, :num_codes] = alpha * np.eye(num_codes) + (1 - alpha - gamma) / num_codes
    result[:num_codes, -1] = gamma
    result[-1, -1] = 1
    return result


def step_matrices(name, num_codes, num_steps):
    """Single steps, list of T matrices: entry t - 1 leads from t - 1 to t."""
    alpha, gamma = TOTALS[name](num_steps)
    alpha, gamma = np.r_[1.0, alpha], np.r_[0.0, gamma]
    ratios = zip(alpha[1:] / alpha[:-1], 1 - (1 - gamma[1:]) / (1 - gamma[:-1]), strict=True)
    return [matrix(*ratio, num_codes) for ratio in ratios]


def loss(logits, tokens, noisy, t, schedule, probability, **options):
    """`diffusion.loss`, compiled."""
    compute = lambda *args: diffusion.loss(*args[:-1], schedule, probability=args[-1], **options)
    return jax.jit(compute)(*map(jnp.asarray, (logits, tokens, noisy, t, probability)))


def product(matrices, num_codes):
    result = np.eye(num_codes + 1)
    for each in matrices:
        result = result @ each
    return result


def posterior(x0, after_s, after_t, step):
    """q(x_s | x_t) under the x_0 distribution [K] given each x_t: rows x_t, columns x_s."""
    num_codes = len(after_s) - 1
    # [x_0, x_t, x_s]: q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0)
    given_both = step.T[None] * after_s[:num_codes, None, :] / after_t[:num_codes, :, None]
    return np.einsum("tc,cts->ts", x0, given_both)


@pytest.mark.parametrize("num_steps", [1, 5, 100])
@pytest.mark.parametrize("name", SCHEDULES)
class TestSchedules:
    def test_probabilities_and_totals_are_products(self, name, num_steps):
        schedule = make_schedule(name, 4, num_steps)
        assert schedule.num_steps == num_steps and schedule.num_codes == 4
        running = np.eye(5)
        for t in range(num_steps + 1):
            for kernel in (schedule.step, schedule.total):
                alpha, beta, gamma, stay = (np.exp(values[t]) for values in kernel)
                assert min(alpha, beta, gamma) >= 0
                assert alpha + 4 * beta + gamma == pytest.approx(1, abs=1e-14)
                assert stay == pytest.approx(alpha + beta, rel=1e-12)
            step, total = (
                matrix(np.exp(kernel.log_alpha[t]), np.exp(kernel.log_gamma[t]), 4)
                for kernel in (schedule.step, schedule.total)
            )
            running = running @ step
            np.testing.assert_allclose(total, running, rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(running[-1], [0, 0, 0, 0, 1])

    def test_named_figures(self, name, num_steps):
        total = make_schedule(name, 4, num_steps).total
        alpha, beta, gamma = (np.exp(values) for values in total[:3])
        assert (alpha[0], beta[0], gamma[0]) == (1, 0, 0)
        if num_steps > 1:
            np.testing.assert_allclose(alpha[1:], TOTALS[name](num_steps)[0], atol=1e-15)
            np.testing.assert_allclose(gamma[1:], TOTALS[name](num_steps)[1], atol=1e-15)
        if name == "paper":
            assert alpha[-1] == 0 and gamma[-1] == pytest.approx(0.9) and 4 * beta[-1] == pytest.approx(0.1)
        else:
            assert alpha[-1] == pytest.approx(9e-6) and gamma[-1] == pytest.approx(0.99999)
            np.testing.assert_allclose(4 * beta[1:], 1e-6, rtol=1e-9)


def test_unknown_schedule_and_no_steps():
    with pytest.raises(UserError, match="paper, released"):
        make_schedule("cosine", 4)
    with pytest.raises(UserError, match="at least 1"):
        make_schedule("paper", 4, 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_end_kl(name):
    schedule = make_schedule(name, 3, 5)
    end = product(step_matrices(name, 3, 5), 3)[0]
    prior = np.r_[np.full(3, (1 - end[-1]) / 3), end[-1]]
    assert end_kl(schedule) == pytest.approx(np.sum(end * np.log(end / prior)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_corrupt_draws_the_product_of_the_steps(name):
    rows, steps = 40_000, step_matrices(name, 4, 5)
    schedule = make_schedule(name, 4, 5)
    tokens = jnp.tile(jnp.array([[0, 3]], jnp.int32), (6 * rows, 1))
    t = jnp.repeat(jnp.arange(6), rows)
    noisy = jax.jit(lambda key: diffusion.corrupt(key, tokens, t, schedule))(jax.random.key(0))
    assert noisy.dtype == jnp.int32
    noisy = np.asarray(noisy).reshape(6, rows, 2)
    for now in range(6):
        expected = product(steps[:now], 4)
        for place, token in enumerate((0, 3)):
            shares = np.bincount(noisy[now, :, place], minlength=5) / rows
            sigma = np.sqrt(expected[token] * (1 - expected[token]) / rows)
            assert (np.abs(shares - expected[token]) <= 5 * sigma + 2.5 / rows).all()
        both = np.mean((noisy[now] == 4).all(-1))
        assert both == pytest.approx(expected[0, -1] ** 2, abs=0.0125)  # Tokens are masked on their own.


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_posterior_of_every_jump(name):
    num_codes, num_steps = 4, 5
    schedule, steps = make_schedule(name, num_codes, num_steps), step_matrices(name, num_codes, num_steps)
    x0 = np.random.default_rng(0).dirichlet(np.ones(num_codes), num_codes + 1)
    noisy = jnp.arange(num_codes + 1)[None]
    jumps = [(t, s) for t in range(1, num_steps + 1) for s in range(t)]
    after = lambda t: product(steps[:t], num_codes)
    back = jax.jit(diffusion.log_posterior)
    for t, s in jumps:
        jump = jax.tree.map(lambda values: values[0], grid_jumps(schedule, np.array([t, s])))
        result = np.exp(back(jnp.log(x0)[None], noisy, jump))[0]
        expected = posterior(x0, after(s), after(t), product(steps[s:t], num_codes))
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-9, err_msg=f"{t} > {s}")

    t = jnp.arange(1, num_steps + 1)
    rows = (num_steps, *x0.shape)
    log_x0 = jnp.broadcast_to(jnp.log(x0), rows)
    result = np.exp(back(log_x0, jnp.tile(noisy, (num_steps, 1)), single_jumps(schedule, t)))
    for t in range(1, num_steps + 1):
        expected = posterior(x0, after(t - 1), after(t), steps[t - 1])
        np.testing.assert_allclose(result[t - 1], expected, rtol=2e-5, atol=1e-9)


class TestLoss:
    @pytest.mark.parametrize("name", SCHEDULES)
    def test_by_matrices(self, name):
        num_codes, num_steps = 3, 5
        schedule, steps = make_schedule(name, num_codes, num_steps), step_matrices(name, num_codes, num_steps)
        # Every t, x_0 and x_t, also those that `released` meets once in a million.
        cases = list(itertools.product(range(1, 6), range(num_codes), range(num_codes + 1)))
        t, x0, noisy = (jnp.array(values) for values in zip(*cases, strict=True))
        logits = np.random.default_rng(0).standard_normal((len(cases), 1, num_codes)) * 2
        probability = np.random.default_rng(1).uniform(0.1, 1, len(cases))
        rows = (logits, x0[:, None], noisy[:, None], t)
        result = loss(*rows, schedule, probability, auxiliary_weight=0.25)
        shares = np.exp(logits[:, 0]) / np.exp(logits[:, 0]).sum(-1, keepdims=True)
        for i, (now, true, seen) in enumerate(cases):
            args = (
                product(steps[: now - 1], num_codes),
                product(steps[:now], num_codes),
                steps[now - 1],
            )
            q = posterior(np.tile(np.eye(num_codes)[true], (num_codes + 1, 1)), *args)[seen]
            p = posterior(np.tile(shares[i], (num_codes + 1, 1)), *args)[seen]
            possible = q > 0
            kl = np.sum(q[possible] * np.log(q[possible] / p[possible]))
            auxiliary = -np.log(shares[i, true])
            assert result.variational[i] == pytest.approx(kl, rel=1e-4, abs=3e-6)
            assert result.auxiliary[i] == pytest.approx(auxiliary, rel=1e-5)
            expected = (kl + 0.25 * (2 - now / 5) * auxiliary) / probability[i]
            assert result.loss[i] == pytest.approx(expected, rel=1e-4, abs=3e-5)
            if now == 1:
                assert result.variational[i] == pytest.approx(auxiliary, rel=1e-4)

    def test_sums_over_tokens_and_leaves_rows_alone(self):
        schedule = make_schedule("paper", 3, 5)
        rng = np.random.default_rng(0)
        logits = jnp.asarray(rng.standard_normal((4, 6, 3)), jnp.float32)
        tokens, noisy = jnp.asarray(rng.integers(0, 3, (4, 6))), jnp.asarray(rng.integers(0, 4, (4, 6)))
        t = jnp.array([1, 2, 3, 5])
        whole = loss(logits, tokens, noisy, t, schedule, jnp.full(4, 0.2))
        alone = (logits.reshape(24, 1, 3), tokens.reshape(24, 1), noisy.reshape(24, 1), jnp.repeat(t, 6))
        each = loss(*alone, schedule, jnp.full(24, 0.2))
        for values, summed in zip(each, whole, strict=True):
            np.testing.assert_allclose(values.reshape(4, 6).sum(-1), summed, rtol=1e-5)

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_gradients_are_finite_at_extreme_logits_and_both_ends(self, name):
        schedule = make_schedule(name, 4, 100)
        # True token likeliest, least likely, and in between; masked, right, and wrong.
        logits = jnp.array([[1e4, -1e4, 0, 0], [-1e4, 1e4, 0, 0], [0, 0, 0, 1e30], [0, 0, 0, 0]])
        logits = jnp.tile(logits[:, None], (3, 3, 1)).astype(jnp.bfloat16)
        tokens = jnp.zeros((12, 3), jnp.int32)
        noisy = jnp.tile(jnp.array([[4, 0, 1]]), (12, 1))
        t = jnp.repeat(jnp.array([1, 50, 100]), 4)
        probability = jnp.full(12, 0.01)

        def mean_loss(logits):
            return diffusion.loss(logits, tokens, noisy, t, schedule, probability=probability).loss.mean()

        value, gradient = jax.jit(jax.value_and_grad(mean_loss))(logits)
        gradient = np.asarray(gradient, np.float32)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        # The flat logits of a masked token are pulled towards the true one, at every t.
        assert (gradient[3::4, 0, 0] < 0).all() and (gradient[3::4, 0, 1:] > 0).all()


class TwoTokens:
    """All chains of two tokens with K = 2 and T = 5 under a fixed tabular network, in float64."""

    num_codes, num_steps = 2, 5

    def __init__(self, name):
        self.schedule = make_schedule(name, self.num_codes, self.num_steps)
        self.steps = step_matrices(name, self.num_codes, self.num_steps)
        self.after = [product(self.steps[:t], self.num_codes) for t in range(self.num_steps + 1)]
        self.states = np.array(list(itertools.product(range(3), repeat=2)))  # [9, 2]
        self.data = [i for i, state in enumerate(self.states) if (state < 2).all()]
        self.table = np.random.default_rng(5).standard_normal((self.num_steps + 1, 9, 2, 2)) * 1.5

    def logits_fn(self, tokens, time):
        t = jnp.rint(time * self.num_steps).astype(jnp.int32)
        return jnp.asarray(self.table, jnp.float32)[t, 3 * tokens[:, 0] + tokens[:, 1]]

    def back(self, t, s):
        """p(x_s | x_t) over pairs, [9, 9]."""
        weights = np.exp(self.table[t])
        x0 = weights / weights.sum(-1, keepdims=True)  # [9, 2, K]
        args = (self.after[s], self.after[t], product(self.steps[s:t], self.num_codes))
        rows = []
        for state, shares in zip(self.states, x0, strict=True):
            first, second = (posterior(np.tile(shares[i], (3, 1)), *args)[state[i]] for i in range(2))
            rows.append(np.outer(first, second).ravel())
        return np.array(rows)

    def pairs(self, single):
        """A transition of one token, [3, 3], as one of pairs, [9, 9]."""
        return np.kron(single, single)

    def start(self):
        gamma = self.after[-1][0, -1]
        single = np.r_[np.full(2, (1 - gamma) / 2), gamma]
        return np.kron(single, single)

    def probability(self):
        """p(x_0) over the 9 pairs."""
        result = self.start()
        for t in range(self.num_steps, 0, -1):
            result = result @ self.back(t, t - 1)
        return result

    def expected_bound(self):
        """The bound of each of the 4 pairs of codes, by its definition."""
        result = []
        for x0 in self.data:
            end = self.pairs(self.after[-1])[x0]
            value = np.sum(end * np.log(end / self.start()))
            for t in range(1, self.num_steps + 1):
                seen = self.pairs(self.after[t])[x0]
                before, step = self.pairs(self.after[t - 1])[x0], self.pairs(self.steps[t - 1])
                predicted = self.back(t, t - 1)
                for now in range(9):
                    q = step[:, now] * before / seen[now]
                    some = q > 0
                    value += seen[now] * np.sum(q[some] * np.log(q[some] / predicted[now, some]))
            result.append(value)
        return np.array(result)


class TestBound:
    @pytest.mark.parametrize("name", SCHEDULES)
    def test_lies_above_the_enumerated_likelihood_and_is_unbiased(self, name):
        toy = TwoTokens(name)
        probability = toy.probability()
        assert probability[toy.data].sum() == pytest.approx(1, abs=1e-9)
        expected = toy.expected_bound()
        assert (expected > -np.log(probability[toy.data]) + 1e-3).all()

        rows = 20_000
        tokens = jnp.repeat(jnp.asarray(toy.states[toy.data], jnp.int32), rows, 0)
        draw = lambda key: diffusion.bound(key, toy.logits_fn, tokens, toy.schedule, draws=2)
        values = np.asarray(jax.jit(draw)(jax.random.key(0)), np.float64).reshape(4, rows)
        error = np.abs(values.mean(-1) - expected) / (values.std(-1) / np.sqrt(rows))
        assert (error < 4).all()

    def test_more_draws_vary_less(self):
        toy = TwoTokens("paper")
        tokens = jnp.zeros((2000, 2), jnp.int32)

        def spread(draws):
            key = jax.random.key(0)
            bound = lambda: diffusion.bound(key, toy.logits_fn, tokens, toy.schedule, draws=draws)
            return np.std(jax.jit(bound)())

        # The times are spread evenly, so it falls faster than 1 / sqrt(draws).
        assert spread(10) < spread(1) / 4

    def test_is_tight_for_one_token_and_its_true_posterior(self):
        """The reverse of a single token's chain is exact, and alpha is 0 at T: nothing is lost."""
        num_codes, num_steps = 3, 4
        schedule = make_schedule("paper", num_codes, num_steps)
        shares = np.array([0.6, 0.3, 0.1])
        steps = step_matrices("paper", num_codes, num_steps)
        after = [product(steps[:t], num_codes) for t in range(num_steps + 1)]
        cases = list(itertools.product(range(1, num_steps + 1), range(num_codes), range(num_codes + 1)))
        t, x0, noisy = map(np.array, zip(*cases, strict=True))
        joint = np.array([shares * after[now][:num_codes, seen] for now, seen in zip(t, noisy, strict=True)])
        posterior_x0 = joint / joint.sum(-1, keepdims=True)
        rows = (np.log(posterior_x0)[:, None], x0[:, None], noisy[:, None], t)
        result = loss(*rows, schedule, np.ones(len(cases)))
        for token in range(num_codes):
            chance = [after[now][token, seen] * (true == token) for now, true, seen in cases]
            value = np.dot(chance, np.asarray(result.variational, np.float64))
            assert value == pytest.approx(-np.log(shares[token]), abs=1e-5)


def test_the_loss_under_drawn_times_estimates_the_bound():
    """With times from a lopsided history, loss / probability still has the bound's mean."""
    toy = TwoTokens("paper")
    rows = 40_000
    tokens = jnp.tile(jnp.asarray(toy.states[toy.data[1]], jnp.int32), (rows, 1))
    history = timesteps.History(jnp.array([9.0, 1.0, 0.1, 4.0, 0.01]), jnp.full(5, 11))

    @jax.jit
    def draw(key):
        time_key, noise_key = jax.random.split(key)
        t, probability = timesteps.draw_times(time_key, history, rows)
        noisy = diffusion.corrupt(noise_key, tokens, t, toy.schedule)
        return diffusion.loss(
            toy.logits_fn(noisy, t / 5),
            tokens,
            noisy,
            t,
            toy.schedule,
            probability=probability,
            auxiliary_weight=0.0,
        ).loss

    values = np.asarray(draw(jax.random.key(0)), np.float64)
    error = abs(values.mean() - toy.expected_bound()[1]) / (values.std() / np.sqrt(rows))
    assert error < 4
