"""Noise that is a function of (seed, position in the output, token) and of nothing else.

There is no state to advance: a request that goes on elsewhere draws what it would have drawn here.
A token is chosen by the Gumbel-max rule: the largest of logit + noise, where the noise has Gumbel's
distribution, is a draw from the softmax of the logits.

**How.** `row_keys` hashes a row's seed and position into four 32-bit words with Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), on the host.  On the device
a token's fixed 32 bits are mixed with three of the words, three multiplications deep.  The mixed
integer, widened to float32, is an argument of Gumbel's quantile function, which is a table with
straight lines between its entries: 128 for each power of two on either side of the median.

**What is exact.** The noise is the same to the last bit on every device: everything before the
table is integer arithmetic with wraparound, the table is made on the host by operations that IEEE
754 defines, and what follows is one multiplication and one addition in float32, each rounded by
itself.  So are the sum with the logit and the choice: equal logits make equal tokens.  What is not:
logits differ between kinds of hardware by rounding, and so do filters that sum up probabilities.

**Resolution.** The uniform variate has 32 bits on a side, so that the noise lies between -3.1 and
22.9, and a token of probability p is drawn with p (a/2) / sinh(a/2), where a = 2^-32 / p: 0.998 p
for 1e-9, 0.8 p for 1e-10, practically never below 1e-11.  Keys have 128 bits: rows do not meet.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger(__name__)

Words = NDArray[np.uint64]
Fused = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_PHILOX_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_PHILOX_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_PHILOX_ROUNDS = 10
# Multipliers and shifts of a 32-bit mixer of little bias, found by search: C. Wellons,
# "Prospecting for hash functions", 2018 (there: triple32).
MIX_MULTIPLIERS = (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB)
MIX_SHIFTS = (17, 11, 15, 14)
TABLE_SHIFT = 16
"""Of a float32's bits: leaves its sign, its exponent and 7 bits of its mantissa."""
_TABLE_SIZE = 1 << (32 - TABLE_SHIFT)
_TILE_ELEMENTS = {"cpu": 1 << 15, "cuda": 1 << 21}
"""Numbers that are worked on at once: what stays in a core's or a card's cache, five times over."""
_GROUP = 1024


def row_keys(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.int32]:
    """Keys of rows (rows, 4): of any integers, of which 64 bits count."""
    key = _wide(seeds)
    counter = _wide(positions)
    zeros = np.zeros_like(key)
    words = philox((counter & _MASK, counter >> _HALF, zeros, zeros), (key & _MASK, key >> _HALF))
    return np.stack(words, axis=-1).astype(np.uint32).view(np.int32)


def philox(counter: Sequence[Words], key: Sequence[Words]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 of arrays of 32-bit words, each in 64 bits."""
    multiplied, added = np.stack([counter[0], counter[2]]), np.stack([counter[1], counter[3]])
    keys = np.stack(key)
    for _ in range(_PHILOX_ROUNDS):
        product = (multiplied * _PHILOX_MULTIPLIERS)[::-1]
        multiplied = (product >> _HALF) ^ added ^ keys
        added = product & _MASK
        keys = (keys + _PHILOX_KEY_STEPS) & _MASK
    return multiplied[0], added[0], multiplied[1], added[1]


@frozen(eq=False)
class _Room:
    """What `Noise` works in, a part at a time."""

    mixed: Tensor
    spare: Tensor
    values: Tensor
    scores: Tensor
    """(rows at once, vocabulary and what makes it whole groups)"""


class Noise:
    """Draws tokens of one vocabulary on one device; for one thread at a time."""

    def __init__(self, vocab: int, device: torch.device | str = "cpu") -> None:
        self.vocab = vocab
        self._device = torch.device(device)
        self._tokens = torch.from_numpy(token_words(vocab)).to(self._device)
        intercepts, slopes = gumbel_table()
        self._intercepts = torch.from_numpy(intercepts).to(self._device)
        self._slopes = torch.from_numpy(slopes).to(self._device)
        self._fused = _fused(self._device)
        elements = _TILE_ELEMENTS.get(self._device.type, 1 << 21)
        self._rows = max(1, elements // vocab)
        # A row on a CPU is taken in parts, of which the last may be short.
        self._columns = min(vocab, elements) if self._device.type == "cpu" else vocab
        if not self.fused:
            _ = self._room

    @property
    def fused(self) -> bool:
        """Whether one kernel does it, in one pass over the logits."""
        return self._fused is not None

    @cached_property
    def _room(self) -> _Room:
        """Made when it is needed: a kernel needs none."""
        size, width = self._rows * self._columns, -(-self.vocab // _GROUP) * _GROUP
        with torch.inference_mode(mode=False):  # so that it may be used in that mode and without
            mixed = torch.empty(size, dtype=torch.int32, device=self._device)
            return _Room(
                mixed,
                torch.empty_like(mixed),
                torch.empty(size, device=self._device),
                torch.full((self._rows, width), -math.inf, device=self._device),
            )

    def keys(self, seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Keys of rows, on the device: (rows, 4), int32."""
        keys = torch.from_numpy(row_keys(seeds, positions))
        if self._device.type == "cuda":
            return keys.pin_memory().to(self._device, non_blocking=True)
        return keys.to(self._device)

    def choose(self, logits: Tensor, keys: Tensor) -> Tensor:
        """A token of each row of logits (rows, vocabulary), float32, by its key: (rows,), int64.

        The logits are those whose softmax is drawn from; tokens at minus infinity are never drawn.
        The first of equals is taken.
        """
        if self._fused is not None:
            return self._fused(logits, keys, self._tokens, self._slopes, self._intercepts)
        return self.choose_by_parts(logits, keys)

    def choose_by_parts(self, logits: Tensor, keys: Tensor) -> Tensor:
        """The same by operations of PyTorch alone."""
        chosen = torch.empty(logits.shape[0], dtype=torch.int64, device=self._device)
        for start in range(0, logits.shape[0], self._rows):
            rows = slice(start, start + self._rows)
            count = keys[rows].shape[0]
            scores = self._room.scores[:count]
            for low in range(0, self.vocab, self._columns):
                part = slice(low, min(low + self._columns, self.vocab))
                into = scores[:, part]
                self._gumbel(keys[rows], part, into)
                into.add_(logits[rows, part])
            chosen[rows] = self._largest(scores)
        return chosen

    def gumbel(self, keys: Tensor) -> Tensor:
        """The noise of every token for each key: (keys, vocabulary), float32."""
        noise = torch.empty((keys.shape[0], self.vocab), device=self._device)
        for row in range(keys.shape[0]):
            one = slice(row, row + 1)
            for low in range(0, self.vocab, self._columns):
                part = slice(low, min(low + self._columns, self.vocab))
                self._gumbel(keys[one], part, noise[one, part])
        return noise

    def _gumbel(self, keys: Tensor, part: slice, out: Tensor) -> None:
        """The noise of some tokens for each key."""
        room, count = self._room, out.numel()
        mixed, spare, values = room.mixed[:count], room.spare[:count], room.values[:count]
        mix(self._tokens[part], keys, mixed.view(out.shape), spare.view(out.shape))
        values.copy_(mixed)
        torch.bitwise_right_shift(values.view(torch.int32), TABLE_SHIFT, out=spare)
        spare.bitwise_and_(_TABLE_SIZE - 1)
        coefficients = mixed.view(torch.float32)
        torch.index_select(self._slopes, 0, spare, out=coefficients)
        values.mul_(coefficients)
        torch.index_select(self._intercepts, 0, spare, out=coefficients)
        torch.add(values.view(out.shape), coefficients.view(out.shape), out=out)

    def _largest(self, scores: Tensor) -> Tensor:
        """The index of the first largest of each row; in two steps where argmax is slow."""
        if self._device.type != "cpu":
            return scores.argmax(-1)
        groups = scores.view(scores.shape[0], -1, _GROUP)
        group = groups.amax(-1).argmax(-1)
        best = groups[torch.arange(len(group)), group]
        return group * _GROUP + best.argmax(-1)


def _fused(device: torch.device) -> Fused | None:
    """One pass over the logits, where there is a GPU with Triton; the result is the same.

    Triton needs a C compiler.  Without, and on anything else that keeps it from working, operations
    of PyTorch do, which take some twenty passes.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    try:
        from shuntserve_core.sampling import kernel

        zeros = torch.zeros(1, 4, dtype=torch.int32, device=device)
        table = torch.zeros(_TABLE_SIZE, device=device)
        kernel.choose(torch.zeros(1, 4, device=device), zeros, zeros[0], table, table)
    except Exception as error:
        logger.warning("tokens are drawn without Triton, which takes longer: %s", error)
        return None
    return kernel.choose


def mix(tokens: Tensor, keys: Tensor, out: Tensor, spare: Tensor) -> None:
    """The random bits of tokens for each key: (keys, tokens), int32 of both signs.

    `tokens` are words of `token_words`; `spare` is overwritten.
    """
    columns = keys.unsqueeze(-1).unbind(1)
    torch.bitwise_xor(tokens, columns[0], out=out)
    out.mul_(_signed(MIX_MULTIPLIERS[0]))
    for number in (1, 2):
        shift = MIX_SHIFTS[number]
        # Shifts of signed integers bring copies of the sign; here zeros are wanted.
        torch.bitwise_right_shift(out, shift, out=spare)
        out.bitwise_xor_(spare.bitwise_and_((1 << (32 - shift)) - 1))
        out.bitwise_xor_(columns[number]).mul_(_signed(MIX_MULTIPLIERS[number]))


def token_words(vocab: int) -> NDArray[np.int32]:
    """Fixed bits of each token, which differ between any two of them: (vocabulary,)."""
    words = np.arange(1, vocab + 1, dtype=np.uint32)
    for shift, multiplier in zip(MIX_SHIFTS, (*MIX_MULTIPLIERS, 1), strict=True):
        words ^= words >> np.uint32(shift)
        words *= np.uint32(multiplier)
    return words.view(np.int32)


def gumbel_table() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Intercepts and slopes of Gumbel's quantile function, by the upper bits of a float32.

    Its argument x is a whole number from -2^31 to 2^31 - 1; the uniform variate is
    (|x| - 1/2) / 2^32 from above for x < 0, and (x + 1/2) / 2^32 from below otherwise.
    """
    bits = np.arange(_TABLE_SIZE, dtype=np.uint32) << np.uint32(TABLE_SHIFT)
    exponents, fractions = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    used = ((exponents >= 127) & (exponents < 158)) | ((exponents == 158) & (fractions == 0))
    intercepts = np.zeros(_TABLE_SIZE, dtype=np.float32)
    slopes = np.zeros(_TABLE_SIZE, dtype=np.float32)
    low = bits[used].view(np.float32).astype(np.float64)
    step = np.exp2(exponents[used] - 127.0 + TABLE_SHIFT - 23)
    first, last = _quantile(low), _quantile(low + np.copysign(step, low))
    slope = (last - first) / np.copysign(step, low)
    slopes[used] = slope
    intercepts[used] = first - slope * low
    intercepts[0] = _quantile(np.zeros(1))[0]
    return intercepts, slopes


def _quantile(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gumbel's quantile function at x, see `gumbel_table`."""
    share = np.where(x < 0, np.abs(x) - 0.5, x + 0.5) * 2.0**-32
    # -log(1 - share) from above, -log(share) from below: an exponential variate.
    above = 2 * _atanh(share / (2 - share))
    exponential = np.where(x < 0, above, -_log(share))
    return -_log(exponential)


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The natural logarithm by operations that are rounded alike everywhere."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa, exponent = np.where(small, 2 * mantissa, mantissa), exponent - small
    return 2 * _atanh((mantissa - 1) / (mantissa + 1)) + exponent * 0.6931471805599453


def _atanh(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """By its series; |x| is at most 1/3, and a little more in the last entry of a table."""
    square, total = x * x, np.zeros_like(x)
    for odd in range(43, 0, -2):
        total = total * square + 1.0 / odd
    return x * total


def _wide(values: Sequence[int]) -> Words:
    """Integers as 64 bits each."""
    return np.array([value & 0xFFFFFFFFFFFFFFFF for value in values], dtype=np.uint64)


def _signed(word: int) -> int:
    """A 32-bit word as an int32."""
    return word - (1 << 32) if word >= 1 << 31 else word
