"""A model with what its last layer sees: pooled features beside the logits."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..capture import image_channels, native_size
from ..errors import ModelError


class WithEmbeddings(nn.Module):
    """Logits (N, classes) and embeddings (N, features).

    Attributes
    ----------
    body : the model without its last layer.
    head : that layer.
    """

    def __init__(self, body: nn.Module, head: nn.Linear):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.body(x)
        embedding = getattr(embedding, "logits", embedding)
        return self.head(embedding), embedding


def with_embeddings(model: nn.Module) -> nn.Module:
    """A model that gives embeddings, too; the one given is left as it is, and shares its weights.

    Raises
    ------
    ModelError
        Its last layer is not linear, or not the last thing that it does.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError("the model has no linear layer; accepted for embeddings: one at its end")
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    body = copy.deepcopy(model, memo)
    owner, _, name = linear[-1].rpartition(".")
    owner = body.get_submodule(owner)
    head = getattr(owner, name)
    setattr(owner, name, nn.Identity())
    made = WithEmbeddings(body, head).eval()
    _check(model, made, linear[-1])
    return made


def _check(model: nn.Module, made: WithEmbeddings, head: str) -> None:
    """Raise where the two give different logits: of what stands behind the layer, as a softmax."""
    size, channels = native_size(model), image_channels(model)
    x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    x = x.to(next(model.parameters()))
    try:
        with torch.inference_mode():
            expected = model(x)
            found, _ = made(x)
        same = torch.allclose(getattr(expected, "logits", expected), found)
    except Exception as error:  # whatever a model raises where a layer is missing
        raise ModelError(f"the model can't do without its layer {head}: {error}") from error
    if not same:
        raise ModelError(
            f"the model's last linear layer, {head}, is not the last thing that it does; accepted "
            "for embeddings: one at its end"
        )
