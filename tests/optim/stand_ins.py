"""Optimizers that are not torch's, as small as they can be: what `Pipeline` must live with."""

from __future__ import annotations

import torch


class EightBit(torch.optim.Optimizer):
    """Momentum kept in 8 bits a value, as bitsandbytes does it: its own keys, its own dtype, its own loading."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["state1"] = torch.full_like(p, 128, dtype=torch.uint8)
                    state["absmax1"] = torch.ones((), dtype=torch.float32)
                m = (state["state1"].float() - 128) / 127 * state["absmax1"]
                m = 0.9 * m + p.grad.float()
                state["absmax1"] = m.abs().max() + 1e-12 if m.numel() else torch.ones(())
                state["state1"] = (m / state["absmax1"] * 127 + 128).round().to(torch.uint8)
                p.add_(m.to(p.dtype), alpha=-float(group["lr"]))


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD: weights are y while training, x while evaluating; it refuses to step in the wrong mode."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    def _swap(self, to_train):
        for group in self.param_groups:
            if group["train_mode"] != to_train:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        z = self.state[p]["z"]
                        p.data.lerp_(z, 1 - group["beta"] if to_train else 1 - 1 / group["beta"])
                group["train_mode"] = to_train

    def train(self):
        self._swap(True)

    def eval(self):
        self._swap(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("call optimizer.train() first")
            group["k"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 1 / group["k"])
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["k"]) - 1))
                z.sub_(p.grad, alpha=group["lr"])
