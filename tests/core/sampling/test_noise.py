"""The noise that tokens are drawn with: what it is, and that it is as good as random.

Seeds are fixed, so these tests fail always or never; bounds are 4.5 standard deviations or more.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shuntserve_core.sampling.noise import Noise, gumbel_table, mix, philox, row_keys, token_words

VOCAB = 49_152


def bits(seeds: range, positions: range, vocab: int = VOCAB) -> NDArray[np.uint32]:
    """Random words (pairs of seed and position, vocabulary)."""
    pairs = [(seed, position) for seed in seeds for position in positions]
    keys = torch.from_numpy(row_keys([s for s, _ in pairs], [p for _, p in pairs]))
    out = torch.empty(len(pairs), vocab, dtype=torch.int32)
    mix(torch.from_numpy(token_words(vocab)), keys, out, torch.empty_like(out))
    return out.numpy().view(np.uint32)


def deviation(counts: NDArray[np.int64]) -> float:
    """By how many standard deviations a chi-square of equally probable cells is off."""
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return float(abs(chi_square - freedom) / math.sqrt(2 * freedom))


def joint(one: NDArray[np.uint32], other: NDArray[np.uint32], shift: int) -> float:
    """The deviation of pairs of 5 bits from independence and uniformity."""
    cells = ((one >> shift) & 31).astype(np.int64) * 32 + ((other >> shift) & 31)
    return deviation(np.bincount(cells.ravel(), minlength=1024))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_keys_are_made_by_philox(
    counter: tuple[int, ...], key: tuple[int, ...], expected: str
) -> None:
    """The known answers that its authors publish."""
    words = philox(*([np.array([w], dtype=np.uint64) for w in part] for part in (counter, key)))
    assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


def test_it_is_the_same_for_ever() -> None:
    """A request may go on under another version: a change of these is a change for users."""
    intercepts, slopes = gumbel_table()
    noise = Noise(VOCAB)
    keys = noise.keys([0, 7, 2**63 - 1, -1], [0, 1, 1000, 2**40])
    digests = [
        hashlib.sha256(data.tobytes()).hexdigest()[:16]
        for data in (intercepts, slopes, keys.numpy(), noise.gumbel(keys).numpy())
    ]
    assert digests == [
        "66b366375b7cb7d4",
        "278cd3ce0d8ca39f",
        "efeb0060d28ebfde",
        "552d726169dbf2bf",
    ]


def test_seeds_count_with_64_bits_and_rows_do_not_meet() -> None:
    seeds = [0, 1, -1, 2**31, 2**32, 2**63 - 1, 2**63]
    keys = [tuple(row_keys([seed], [at])[0].tolist()) for seed in seeds for at in (0, 1, 2**32)]
    assert len(set(keys)) == len(keys)
    # As many rows as a service samples in hours: none has another's key.
    many = row_keys(range(300_000), [5] * 300_000)
    assert len(np.unique(many[:, :2].copy().view(np.int64))) == 300_000
    assert (row_keys([3 + 2**64], [0]) == row_keys([3], [0])).all()


@pytest.mark.parametrize("shift", [0, 11, 22])
def test_words_are_uniform_in_all_their_bits(shift: int) -> None:
    words = bits(range(10), range(4))
    cells = ((words >> shift) & 1023).astype(np.int64)
    assert deviation(np.bincount(cells.ravel(), minlength=1024)) < 4.5


@pytest.mark.parametrize("shift", [0, 14, 27])
@pytest.mark.parametrize("apart", ["seeds", "positions", "tokens", "far tokens", "diagonal"])
def test_neighbours_are_independent(apart: str, shift: int) -> None:
    """Choices of one request have seeds that follow one another."""
    words = bits(range(20, 40), range(1)) if apart == "seeds" else bits(range(1), range(20))
    one, other = {
        "seeds": (words[:-1], words[1:]),
        "positions": (words[:-1], words[1:]),
        "tokens": (words[:, :-1], words[:, 1:]),
        "far tokens": (words[:, :-4096], words[:, 4096:]),
        "diagonal": (words[:-1, :-1], words[1:, 1:]),
    }[apart]
    assert joint(one, other, shift) < 4.5


def test_one_token_over_many_positions_is_random_too() -> None:
    words = bits(range(1), range(30_000), 8)
    for token in range(8):
        column = words[:, token]
        assert deviation(np.bincount((column >> 22).astype(np.int64), minlength=1024)) < 4.5
        assert joint(column[:-1], column[1:], 27) < 4.5


def test_a_changed_bit_changes_every_bit_half_the_time() -> None:
    """Of a key's words, and of a token's."""
    generator = np.random.default_rng(1)
    tokens = torch.from_numpy(token_words(4096))
    keys = generator.integers(-(2**31), 2**31, (1, 4), dtype=np.int64).astype(np.int32)
    shape = (1, 4096)

    def mixed(words: torch.Tensor, key: NDArray[np.int32]) -> NDArray[np.uint32]:
        out = torch.empty(shape, dtype=torch.int32)
        mix(words, torch.from_numpy(key), out, torch.empty_like(out))
        return out.numpy().view(np.uint32)

    before = mixed(tokens, keys)
    for bit in range(32):
        flip = np.array([1 << bit], dtype=np.uint32).view(np.int32)
        changed = before ^ mixed(tokens ^ torch.from_numpy(flip), keys)
        share = [float(((changed >> i) & 1).mean()) for i in range(16, 32)]
        assert min(share) > 0.4, bit
        assert max(share) < 0.6, bit


def test_its_distribution_is_gumbels() -> None:
    noise = Noise(VOCAB)
    values = noise.gumbel(noise.keys([9] * 60, range(60))).double().flatten().sort().values
    expected = (-(-values).exp()).exp()
    places = (torch.arange(len(values)) + 0.5) / len(values)
    kolmogorov = float((expected - places).abs().max()) * math.sqrt(len(values))
    assert kolmogorov < 1.9, "the 0.15 % point"


def quantile(word: int) -> float:
    """Gumbel's quantile function where a mixed word puts the uniform variate."""
    if word < 0:
        return -math.log(-math.log1p(-(-word - 0.5) * 2.0**-32))
    return -math.log(-math.log((word + 0.5) * 2.0**-32))


def by_table(words: list[int]) -> NDArray[np.float32]:
    """As devices compute it."""
    intercepts, slopes = gumbel_table()
    values = np.array(words, dtype=np.int32).astype(np.float32)
    index = (values.view(np.int32) >> 16) & 0xFFFF
    return values * slopes[index] + intercepts[index]


def test_the_table_is_the_quantile_function_up_to_the_ends() -> None:
    ends = [0, 1, 2, 3, 5, 127, 128, 129, 2**23 + 1, 2**30, 2**31 - 1]
    words = [*ends, *(-word - 1 for word in ends), *range(-(2**31), 2**31, 99_991)]
    error = by_table(words) - np.array([quantile(word) for word in words])
    assert np.abs(error).max() < 2e-5
    assert by_table([-1])[0] > 22.8
    assert by_table([0])[0] > -3.2
    # Never against the order: a smaller share of the tail is never more.
    ordered = by_table(sorted(words))
    upper = ordered[: sum(word < 0 for word in words)]
    assert (np.diff(upper) >= -1e-6).all()


@pytest.mark.parametrize(("probability", "least"), [(1e-6, 0.999), (1e-9, 0.99), (1e-10, 0.7)])
def test_rare_tokens_are_drawn_as_often_as_is_said(probability: float, least: float) -> None:
    """The chance against one other token, summed up over the words that can win at all."""
    count = min(2**31, math.ceil(60 * probability * 2**32))
    noise = by_table([-word - 1 for word in range(count)]).astype(np.float64)
    wins = np.exp(-np.exp(-noise) * (1 - probability) / probability).sum() * 2.0**-32
    a = 2.0**-32 / probability
    assert wins / probability == pytest.approx(a / 2 / math.sinh(a / 2), rel=2e-3)
    assert least < wins / probability < 1.001


@pytest.mark.parametrize("vocab", [1, 7, 1024, 32_768, VOCAB, 128_256])
def test_the_choice_is_the_largest_sum_of_logit_and_noise(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    noise = Noise(vocab)
    count = 70 if vocab < 2000 else 5
    logits = torch.randn(count, vocab, generator=generator) * 3
    logits[:, vocab // 2 :: 5] = -math.inf
    keys = noise.keys([*range(count)], [4] * count)
    chosen = noise.choose(logits, keys)
    assert chosen.tolist() == (logits + noise.gumbel(keys)).argmax(-1).tolist()
    assert [int(noise.choose(logits[i : i + 1], keys[i : i + 1])) for i in range(count)] == (
        chosen.tolist()
    )


@pytest.mark.parametrize("over", ["seeds", "positions"])
@pytest.mark.parametrize("first", [0, 2**62 + 12_345])
def test_tokens_are_drawn_from_the_softmax(over: str, first: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(300, generator=generator) * 2
    count, noise = 40_000, Noise(300)
    many, one = range(first, first + count), [77] * count
    keys = noise.keys(*((many, one) if over == "seeds" else (one, many)))
    counts = Counter(noise.choose(logits.expand(count, -1), keys).tolist())
    expected = (logits.double().softmax(-1) * count).numpy()
    seen = np.array([counts[token] for token in range(300)])
    common = expected >= 5
    cells = [*zip(seen[common], expected[common], strict=True)]
    cells.append((seen[~common].sum(), expected[~common].sum()))
    chi_square, freedom = sum((s - e) ** 2 / e for s, e in cells), len(cells) - 1
    assert abs(chi_square - freedom) / math.sqrt(2 * freedom) < 4.5


CHECK = """
import torch
from shuntserve_core.sampling import kernel
from shuntserve_core.sampling.noise import Noise

for vocab in (7, 5000):
    noise = Noise(vocab)
    logits = (torch.randn(6, vocab + 3, generator=torch.Generator().manual_seed(1)) * 2)[:, :vocab]
    logits[:, ::3] = -torch.inf
    keys = noise.keys(range(6), range(5, 11))
    fused = kernel.choose(logits, keys, noise._tokens, noise._slopes, noise._intercepts)
    assert fused.tolist() == noise.choose_by_parts(logits, keys).tolist(), vocab
    equal = kernel.choose(
        torch.zeros(1, vocab), keys[:1], noise._tokens, *[torch.zeros_like(noise._slopes)] * 2
    )
    assert equal.tolist() == [0], "the first of equals"
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_for_gpus_chooses_the_same() -> None:
    """Interpreted on the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "same\n", ran.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("vocab", [7, 5000, VOCAB, 128_256])
def test_a_gpu_makes_the_same_noise_and_chooses_the_same(vocab: int) -> None:
    host, device = Noise(vocab), Noise(vocab, "cuda:0")
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(1)) * 2
    seeds, positions = [*range(40)], [*range(3, 43)]
    keys, there = host.keys(seeds, positions), device.keys(seeds, positions)
    assert torch.equal(device.gumbel(there).cpu(), host.gumbel(keys))
    expected = host.choose(logits, keys).tolist()
    assert device.choose(logits.cuda(), there).tolist() == expected
    assert device.choose_by_parts(logits.cuda(), there).tolist() == expected
