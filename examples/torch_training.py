"""A PyTorch training loop with a portopt optimizer: two parameter groups, a scheduler, and a run that goes on from a file."""

import torch
from torch import nn

import portopt
from portopt_torch import TorchOptimizer


def build() -> tuple[nn.Sequential, TorchOptimizer, torch.optim.lr_scheduler.OneCycleLR]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.01}]
    optimizer = TorchOptimizer(groups, portopt.Adam(learning_rate=0.02, clipnorm=1.0))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.05, 0.02], total_steps=200)
    return model, optimizer, scheduler


def train(
    model: nn.Module, optimizer: TorchOptimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: range
) -> float:
    for step in steps:
        x = torch.rand(64, 2, generator=torch.Generator().manual_seed(step)) * 2 - 1
        optimizer.zero_grad()
        loss = (model(x) - (x[:, :1] * x[:, 1:])).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return float(loss.item())


whole = build()
print(f"loss after 200 steps: {train(*whole, range(200)):.5f}")

first = build()
train(*first, range(100))
torch.save([part.state_dict() for part in first], "half.pt")

model, optimizer, scheduler = second = build()
saved_model, saved_optimizer, saved_scheduler = torch.load("half.pt", weights_only=True)
model.load_state_dict(saved_model)
optimizer.load_state_dict(saved_optimizer)
scheduler.load_state_dict(saved_scheduler)
print(f"the same after a break: {train(*second, range(100, 200)):.5f}")

pairs = zip(whole[0].parameters(), second[0].parameters(), strict=True)
assert all(torch.equal(p, q) for p, q in pairs)
print("every parameter has the same bits")
