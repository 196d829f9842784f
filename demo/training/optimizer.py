"""Muon for hidden matrices (Jordan et al. 2024), AdamW for everything else, and the rate's course."""

import torch


def orthogonalize(x):
    """Five Newton-Schulz steps towards the nearest matrix with equal singular values; x [count, rows, columns]."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; matrices of one shape are done together."""

    def __init__(self, parameters, lr, momentum=.95, weight_decay=.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in by_shape.items():
                gradients = [p.grad for p in parameters]
                momenta = [self.state[p]["momentum"] for p in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                update = orthogonalize(torch.stack(ahead))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(update.unbind()),
                                    alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** .5)


NOT_HIDDEN = ("positional_embedding", "latents", "embed_tokens", "lm_head", "conv1", "probe")


class Optimizers:
    """Both optimizers over the parameters of some modules, with one course of their rates.

    The rate rises over the first 100 steps, stays, and falls linearly to zero over
    the last `decay` of the steps.
    """

    def __init__(self, modules, steps, muon_rate, adam_rate, decay):
        hidden, others = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                is_hidden = parameter.ndim == 2 and min(parameter.shape) >= 64 and not any(
                    word in name for word in NOT_HIDDEN)
                (hidden if is_hidden else others).append(parameter)
        self.parameters = hidden + others
        self.optimizers = [Muon(hidden, lr=muon_rate),
                           torch.optim.AdamW(others, lr=adam_rate, betas=(.9, .98), weight_decay=.01)]
        self.rates = [muon_rate, adam_rate]
        self.steps, self.decay, self.step_number = steps, decay, 0

    def step(self, loss):
        """Take one step down the gradient of loss, clipped to a norm of 1."""
        left = 1 - self.step_number / self.steps
        factor = min(1, (self.step_number + 1) / 100) * min(1, left / self.decay)
        for optimizer, rate in zip(self.optimizers, self.rates):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step_number += 1

    def state_dict(self):
        return {"step": self.step_number, "optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state):
        self.step_number = state["step"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
