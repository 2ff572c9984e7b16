"""A model with what its last layer sees: pooled features beside the logits."""

from __future__ import annotations

import copy

import torch
from torch import nn

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
    return WithEmbeddings(body, head).eval()
