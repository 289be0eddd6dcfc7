"""A prior's training step in plain PyTorch: what ours is measured by.

The same network, corruption, loss and optimiser, written as one writes them in torch: a fused product for
queries, keys and values, `scaled_dot_product_attention`, AdamW with its fused kernel.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.bench.torch_weights import EPSILON, torch_weights
from regvq_jax.models.prior import PriorNet, time_features
from regvq_jax.optim import OptimSettings
from regvq_jax.priors.diffusion_schedules import LOG_ZERO, Schedule

CAUSAL, MASKED, DIFFUSION = "autoregressive", "masked", "diffusion"


class TorchPrior:
    """Functions of tensors, without modules to call through.

    Attributes:
        num_parameters: of the weights.
    """

    def __init__(
        self,
        kind: str,
        net: PriorNet,
        params: Mapping[str, Any],
        optim: OptimSettings,
        *,
        ema_decay: float,
        label_smoothing: float = 0.0,
        schedule: Schedule | None = None,
        auxiliary_weight: float = 0.0,
        device: str = "cpu",
    ):
        """Copies the weights.

        Args:
            kind: "autoregressive", "masked" or "diffusion".
            net: with learned positions and without a condition.
            params: its parameters.
            optim: with a constant learning rate.
            ema_decay: of the averaged parameters.
            label_smoothing: of the first two kinds.
            schedule, auxiliary_weight: of diffusion.
            device: "cpu", or "cuda", where the loss is compiled.
        """
        import torch

        self._torch, self._kind, self._net, self._device = torch, kind, net, device
        self._clip_norm, self._ema_decay = optim.clip_norm, ema_decay
        self._label_smoothing, self._auxiliary_weight = label_smoothing, auxiliary_weight
        if schedule is not None:
            tensor = lambda x: torch.tensor(np.array(x), dtype=torch.float32, device=device)
            self._step, self._total = jax.tree.map(tensor, (schedule.step, schedule.total))
            self._features = tensor(time_features(np.linspace(0, 1, schedule.num_steps + 1)))
        tensor = lambda x: torch.tensor(x, device=device, requires_grad=True)
        self._weights = jax.tree.map(tensor, torch_weights(net, params))
        self._leaves = jax.tree.leaves(self._weights)
        self._averages = [x.detach().clone() for x in self._leaves]
        self.num_parameters = sum(x.numel() for x in self._leaves)
        groups = [
            {"params": [x for x in self._leaves if x.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [x for x in self._leaves if x.ndim == 1], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.b1, optim.b2), fused=True)
        self._half = net.dtype == jnp.bfloat16
        self._loss = self.loss if device == "cpu" else torch.compile(self.loss)

    def train_step(self, tokens) -> float:
        """One update on int64 [B, N]; the loss before it."""
        torch = self._torch
        self._adam.zero_grad(set_to_none=True)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            loss = self._loss(tokens, *self.corrupt(tokens), dropout=self._net.dropout)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._leaves, self._clip_norm)
        self._adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._leaves, 1 - self._ema_decay)
        return loss.item()

    def gradient_norm(self, tokens: np.ndarray, noisy: np.ndarray, time: np.ndarray) -> tuple[float, float]:
        """(loss, norm of all its gradients) without dropout, of what our corruption has drawn."""
        tensor = lambda x: self._torch.as_tensor(np.array(x), device=self._device)
        loss = self.loss(tensor(tokens).long(), tensor(noisy).long(), tensor(time).long(), dropout=0.0)
        grads = self._torch.autograd.grad(loss, self._leaves)
        return loss.item(), sum(float((x.double() ** 2).sum()) for x in grads) ** 0.5

    def corrupt(self, tokens):
        """(the network's input, int64 [B, N]; the time of each row, int64 [B], 0 without times)."""
        torch, special = self._torch, self._net.special_id
        rows, num_tokens = tokens.shape
        time = torch.zeros(rows, dtype=torch.int64, device=self._device)
        if self._kind == CAUSAL:
            start = torch.full_like(tokens[:, :1], special)
            return torch.cat([start, tokens[:, :-1]], 1), time
        uniform = lambda *shape: torch.rand(shape, device=self._device)
        if self._kind == MASKED:
            share = torch.cos(torch.pi / 2 * uniform(rows, 1))
            count = (share * num_tokens).round().clamp(1, num_tokens)
            is_masked = uniform(rows, num_tokens).argsort(-1).argsort(-1) < count
            return torch.where(is_masked, special, tokens), time
        num_steps = len(self._total.log_alpha) - 1
        # Without a history all times are as likely; they are spread over the rows.
        even = (uniform(1) + torch.randperm(rows, device=self._device) / rows) % 1.0
        time = 1 + (even * num_steps).long().clamp(max=num_steps - 1)
        beta = self._total.log_beta + np.log(special)
        keep = (self._total.log_alpha - torch.logaddexp(self._total.log_alpha, beta)).exp()[time]
        codes = torch.randint_like(tokens, special)
        kept = torch.where(uniform(rows, num_tokens) < keep[:, None], tokens, codes)
        is_masked = uniform(rows, num_tokens) < self._total.log_gamma.exp()[time][:, None]
        return torch.where(is_masked, special, kept), time

    def loss(self, tokens, noisy, time, *, dropout: float):
        """The loss [] on int64 [B, N], [B, N] and [B]."""
        logits = self._logits(noisy, time, dropout)
        if self._kind == DIFFUSION:
            return self._diffusion_loss(logits, tokens, noisy, time)
        cross_entropy = self._torch.nn.functional.cross_entropy
        values = cross_entropy(
            logits.flatten(0, 1),
            tokens.flatten(),
            reduction="none",
            label_smoothing=self._label_smoothing,
        )
        if self._kind == CAUSAL:
            return values.mean()
        is_masked = (noisy == self._net.special_id).flatten()
        return (values * is_masked).sum() / is_masked.sum()

    def _logits(self, tokens, time, dropout):
        """float [B, N, K]."""
        torch, net, weights = self._torch, self._net, self._weights
        functional = torch.nn.functional
        linear, drop = functional.linear, lambda x: functional.dropout(x, dropout)
        norm = lambda x, affine: functional.layer_norm(x, (net.dim,), *affine, eps=EPSILON)
        rows, num_tokens = tokens.shape
        places = (weights["row"][:, None] + weights["column"][None]).flatten(0, 1)
        x = drop(functional.embedding(tokens, weights["embedding"]) + places)
        if net.timed:
            level = functional.silu(linear(self._features[time], *weights["time_in"]))
            level = functional.silu(linear(level, *weights["time_out"]))

        for block in weights["blocks"]:
            if net.timed:
                parts = linear(level, *block["modulation"])[:, None].chunk(6, -1)
            h = norm(x, block["attention_norm"])
            if net.timed:
                h = h * (1 + parts[1]) + parts[0]
            h = linear(h, *block["query_key_value"]).view(rows, num_tokens, 3, net.num_heads, -1)
            query, key, value = h.permute(2, 0, 3, 1, 4)
            h = functional.scaled_dot_product_attention(query, key, value, is_causal=net.causal)
            h = drop(linear(h.transpose(1, 2).flatten(2), *block["out"]))
            x = x + parts[2] * h if net.timed else x + h
            h = norm(x, block["mlp_norm"])
            if net.timed:
                h = h * (1 + parts[4]) + parts[3]
            h = functional.gelu(linear(h, *block["mlp_in"]), approximate="tanh")
            h = drop(linear(h, *block["mlp_out"]))
            x = x + parts[5] * h if net.timed else x + h
        return linear(norm(x, weights["last_norm"]), *weights["head"])

    def _diffusion_loss(self, logits, tokens, noisy, time):
        """As `priors.diffusion.loss`, averaged over the tokens."""
        torch = self._torch
        num_codes = logits.shape[-1]
        log_x0 = logits.float().log_softmax(-1)
        is_true = tokens[..., None] == torch.arange(num_codes, device=self._device)
        is_masked = (noisy == num_codes)[..., None]
        is_same = noisy[..., None] == torch.arange(num_codes, device=self._device)
        at = lambda kernel, time: type(kernel)(*(values[time][:, None, None] for values in kernel))
        step, before, after = at(self._step, time), at(self._total, time - 1), at(self._total, time)

        def reaching(kernel):
            others = torch.where(is_same, kernel.log_stay, kernel.log_beta)
            return torch.where(is_masked, kernel.log_gamma, others)

        def log_posterior(log_x0):
            weight = log_x0 - reaching(after)
            total = weight.logsumexp(-1, keepdim=True)
            codes = reaching(step) + torch.logaddexp(before.log_alpha + weight, before.log_beta + total)
            return torch.cat([codes, torch.where(is_masked, before.log_gamma + total, LOG_ZERO)], -1)

        with torch.no_grad():
            true = log_posterior(torch.where(is_true, 0.0, LOG_ZERO))
        variational = (true.exp() * (true - log_posterior(log_x0))).sum((1, 2))
        auxiliary = -torch.where(is_true, log_x0, 0.0).sum((1, 2))
        num_steps = len(self._total.log_alpha) - 1
        weight = self._auxiliary_weight * (2 - time / num_steps)
        return (variational + weight * auxiliary).mean() * num_steps / tokens.shape[1]
