"""The operations counted by formula are those that torch counts, and those that a sweep takes position by position."""

from __future__ import annotations

import itertools

import torch
from benchmarks.operations import Shape
from benchmarks.settings import gpt2, tokens
from torch.utils.flop_counter import FlopCounterMode


def test_operations_of_a_forward_pass_are_those_that_torch_counts():
    module = gpt2(tiny=True)
    module.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(tokens(module, 2, 6), use_cache=False)
    shape = Shape.of(module.config, 6, 2)
    # Torch counts the products with keys that the causal mask rules out; they are nearly half of the attention.
    masked = 2 * shape.layers * 4 * shape.width * (6 * 6 - 21)
    assert counter.get_total_flops() == shape.forward() + masked


def test_a_sweep_of_passes_is_one_pass_for_each_patch_and_one_for_the_clean_prompts():
    shape = Shape(layers=3, width=8, vocabulary=11, length=5, batch=2)
    assert shape.plain_sweep() == 16 * shape.forward()


def test_operations_needed_are_those_whose_inputs_change_and_whose_results_are_read():
    """Counted product by product: which columns enter each map, and which columns anything above still reads."""
    layers, width, vocabulary, n = 3, 8, 11, 4
    total = 0
    for start, position in itertools.product(range(layers), range(n)):
        for layer in range(start, layers):
            changed = {position} if layer == start else set(range(position, n))
            read = {n - 1} if layer == layers - 1 else set(range(position, n))
            total += 2 * width * width * (len(changed & read) + 2 * len(changed))  # query; key and value
            total += 2 * width * width * 9 * len(read)  # attention's output, and the two maps of the MLP
            total += sum(4 * width * (query + 1) for query in read)
        total += 2 * width * vocabulary
    shape = Shape(layers, width, vocabulary, length=n, batch=1)
    assert shape.needed() == 2 * shape.forward(logits=1) + total
    assert Shape(layers, width, vocabulary, n, batch=3).needed() == 3 * shape.needed()
