"""Dictionaries in no special position, and rows for them, shared by the tests of other libraries' files."""

from __future__ import annotations

import torch

import actinium as ac
from actinium.features.dictionaries.rules import BatchTopK

D, M, K = 12, 40, 5


def rows(n=64, d=D, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def random_weights(dictionary, seed=1):
    """Biases, thresholds and norms of their own; decoder rows of unit norm where they are constrained."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in dictionary.named_parameters():
            scale = 0.2 if name.endswith(("b_enc", "b_dec", "b_gate", "b_mag", "r_mag")) else 0.3
            if name.endswith("theta"):
                p.copy_(torch.rand(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * scale)
        if dictionary.decoder_norm == "unit":
            dictionary.W_dec.div_(dictionary.W_dec.norm(dim=1, keepdim=True))
        if isinstance(dictionary.rule, BatchTopK):
            dictionary.rule.running.fill_(0.9)
    return dictionary.eval()


def random_module(module, seed=1):
    """The same for another library's module, whose parameters have names of their own."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name == "threshold":
                p.copy_(torch.rand(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * (0.2 if p.ndim == 1 else 0.3))
    return module.eval()


def close(found, expected):
    """Within 1e-5 of each other; gives the difference."""
    difference = float((found - expected).detach().abs().max())
    assert difference < 1e-5, difference
    return difference


AUTOENCODERS = {
    "relu": lambda **o: ac.features.ReLUSAE(M, **o),
    "gated": lambda **o: ac.features.GatedSAE(M, **o),
    "topk": lambda **o: ac.features.TopKSAE(M, K, **o),
    "jumprelu": lambda **o: ac.features.JumpReLUSAE(M, **o),
    "batch_topk": lambda **o: ac.features.BatchTopKSAE(M, K, **o),
    "matryoshka": lambda **o: ac.features.MatryoshkaSAE([8, 24, M], K, **o),
}
