"""What every training stage shares: a time budget, averaged weights, a loss curve, a resumable state.

A stage is planned in minutes, not in steps, because accelerator time is what is scarce: the learning
rate follows the share of the minutes that is spent, so that a stage always ends annealed.
"""

import copy
import csv
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def warm_start(model: nn.Module, weights: Path | None) -> None:
    """Begin from exported weights where their names and shapes fit; the rest stays fresh."""
    if weights is None:
        return
    own = model.state_dict()
    found = {k: v.float() for k, v in load_file(weights).items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(own | found)
    print(f"{len(found)} of {len(own)} tensors from {weights}", flush=True)


class Run:
    """One stage's run: how far it is, what it logs, and what it resumes from.

    Parameters
    ----------
    folder : Path
        Where `state.pt` and `loss.csv` go.
    minutes : float
        Budget, counted over all resumed parts.
    parts : dict of str to module or optimizer
        What is saved and restored.
    save_every : float
        Seconds between saved states.
    """

    def __init__(self, folder: Path, minutes: float, parts: dict, save_every: float = 40) -> None:
        self.folder, self.seconds, self.parts, self.save_every = folder, 60 * minutes, parts, save_every
        folder.mkdir(parents=True, exist_ok=True)
        self.step, self.spent, self.best = 0, 0.0, math.inf
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.step, self.spent = state["step"], state["spent"]
        self.started = self.logged = self.saved = time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0..1."""
        return min(1.0, (self.spent + time.monotonic() - self.started) / self.seconds)

    def rate(self, peak: float, warmup: float = 0.02, floor: float = 0.02) -> float:
        """Learning rate now: linear warm-up, then a half cosine down to `floor * peak`."""
        p = self.progress
        if p < warmup:
            return peak * max(p / warmup, 0.02)
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (p - warmup) / (1 - warmup))))

    def tick(self, losses: Callable[[], dict[str, float]], every: float = 10) -> bool:
        """Count a step; log and save when it is time. Return whether budget is left."""
        self.step += 1
        now, p = time.monotonic(), self.progress
        if now - self.logged >= every or p >= 1:
            self.logged = now
            self._log({"step": self.step, "progress": round(p, 4), **losses()})
        if now - self.saved >= self.save_every or p >= 1:
            self.saved = now
            self.save()
        return p < 1

    def save(self) -> None:
        """Write the state, under another name first."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": self.step, "spent": self.spent + time.monotonic() - self.started}
        torch.save(state, self.folder / "state.tmp")
        os.replace(self.folder / "state.tmp", self.folder / "state.pt")

    def keep_best(self, loss: float, model: nn.Module) -> None:
        """Write the model to `best.pt` if it did better than before in this part of the run."""
        if loss < self.best:
            self.best = loss
            torch.save(model.state_dict(), self.folder / "best.pt")

    def _log(self, row: dict) -> None:
        print(*(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        path = self.folder / "loss.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerow(row)


class Averaged(nn.Module):
    """Exponential moving average of a model's weights: what a short training ships.

    Parameters
    ----------
    model : Module
        What is followed.
    decay : float
        Share kept at each update, once warmed up.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        self.model, self.decay, self.updates = copy.deepcopy(model).requires_grad_(False), decay, 0

    def get_extra_state(self) -> int:
        """Updates so far: a resumed average must not warm up again and forget what it holds."""
        return self.updates

    def set_extra_state(self, state: int) -> None:
        self.updates = state

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's weights."""
        self.updates += 1
        keep = min(self.decay, self.updates / (self.updates + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - keep)


class Captured:
    """A training step without arguments, replayed as one CUDA graph where there is a GPU.

    Small convolutions leave a GPU waiting for launches; a graph takes them in one. The step must read
    its batch from buffers that stay in place and return tensors.

    Parameters
    ----------
    step : callable returning dict of str to Tensor
        Forward, backward and optimizer.
    enabled : bool
        False runs the step as it is.
    warmup : int
        Steps run as they are before the capture.
    """

    def __init__(self, step: Callable[[], dict[str, Tensor]], enabled: bool, warmup: int = 8) -> None:
        self.step, self.enabled, self.left, self.graph = step, enabled, warmup, None

    def __call__(self) -> dict[str, Tensor]:
        if not self.enabled:
            return self.step()
        if self.graph is not None:
            self.graph.replay()
            return self.out
        if self.left > 0:
            self.left -= 1
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                out = self.step()
            torch.cuda.current_stream().wait_stream(side)
            return out
        self.graph = torch.cuda.CUDAGraph()
        # Other threads (a loader, a logger) may talk to the GPU meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.out = self.step()
        self.graph.replay()
        return self.out
