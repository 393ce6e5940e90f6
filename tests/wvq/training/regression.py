"""A task of the training loop that takes no time: a plane through points."""

import os
import signal
import time

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from wvq.data.sheets import image_grid
from wvq.settings.train import TrainConfig
from wvq.training.acceleration import build_accelerator
from wvq.training.optimization import network_groups
from wvq.training.task import StepLoss, Task
from wvq.training.trainer import Trainer


class Tiny(nn.Module):
    """A plane over points."""

    def __init__(self, dim=3):
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.linear(x)


class Points(Dataset):
    """Points on a plane; NaN at the positions named."""

    def __init__(self, length=16, spoiled=()):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(length, 3, generator=generator)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
        self.spoiled = set(spoiled)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        position, index = key
        return {"x": self.x[index] * (float("nan") if position in self.spoiled else 1.0), "y": self.y[index]}


class Regression(Task):
    """Fits a plane to points; keeps what it draws in each step."""

    name = "regression"
    interrupted_at = None  # number of the evaluation amid which SIGTERM comes

    def __init__(self, config, seconds=0.0):
        self.config, self.seconds, self.evaluations, self.draws = config, seconds, 0, []

    def parameter_groups(self, model):
        return network_groups(list(model.parameters()), self.config)

    def loss(self, model, batch, images_seen, progress):
        time.sleep(self.seconds)
        self.draws.append(torch.rand(()).item())
        loss = (model(batch["x"]) - batch["y"]).square().mean()
        return StepLoss(loss, {"twice": 2 * loss.detach()})

    def evaluate(self, model, accelerator):
        self.evaluations += 1
        assert not model.training
        for item in self.stop.until_set(range(3)):
            if self.evaluations == self.interrupted_at:
                assert item == 0  # and no more of them
                os.kill(os.getpid(), signal.SIGTERM)
        return {"weight": model.linear.weight.detach().sum().item()}

    def picture(self, model):
        return image_grid(torch.zeros(1, 3, 4, 4), columns=1)

    def save(self, model, folder):
        save_file(model.state_dict(), folder / "model.safetensors")


def trainer(folder, data=None, seconds=0.0, model=None, **settings):
    """A trainer of ten steps, with some settings changed."""
    config = TrainConfig(**{"images": 80, "batch_size": 8, "learning_rate": 0.05, "log_every": 8, **settings})
    torch.manual_seed(0)
    task = Regression(config, seconds)
    return Trainer(task, model or Tiny(), data or Points(), config, folder, build_accelerator(config))
