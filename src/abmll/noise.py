"""Keyed, stateless noise: every normal draw is a pure function of who it is for, never of when it was drawn.

A draw's address is (key, layer, text, position, sample, coordinate). The key is `hashing.stable_hash(seed, step, task
name, purpose)`, the text a hash of the token sequence the position belongs to. So the noise does not change with the
batch size, padding, the chunking of samples, a resume or the number of processes; it needs no generator, and a
checkpointed layer replays it exactly.

How: the address of a row (all but the coordinate) is mixed to 64 bits, which give the row a start and an odd increment
of a 32-bit Weyl sequence over the coordinates; a hash of that gives uniforms, and Box-Muller turns pairs of them into
normals. Integers wrap modulo 2^32 and 2^64 on every device. Sources: splitmix64 and streams by increment (Steele, Lea,
Flood, OOPSLA 2014); the 32-bit hash "lowbias32" (Wellons 2018). On a CPU the work goes tile by tile, in the cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN64 = 0x9E3779B97F4A7C15
_M64 = (1 << 64) - 1


def _signed(value: int, bits: int) -> int:
    """The two's complement reading of an unsigned value: torch has no full unsigned arithmetic."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


_SPLIT1, _SPLIT2 = _signed(0xBF58476D1CE4E5B9, 64), _signed(0x94D049BB133111EB, 64)
_GOLDEN = _signed(_GOLDEN64, 64)
_LOW1, _LOW2 = _signed(0x7FEB352D, 32), _signed(0x846CA68B, 32)
_TILE = 1 << 16  # elements: 256 KiB of float32, which a core's second-level cache holds several of


def mix64(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 tensors: a bijection whose every output bit depends on every input bit."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _SPLIT1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SPLIT2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _mix64_int(x: int) -> int:
    """`mix64` of a Python integer."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _M64
    return x ^ (x >> 31)


def fold(*words: int | Tensor, device: torch.device | None = None) -> Tensor:
    """Mix words (Python integers or int64 tensors that broadcast) into one int64 address, in order.

    Leading Python integers cost no tensor operation: put what is common to all rows first.
    """
    common = 0
    address: Tensor | None = None
    for word in words:
        if address is None and isinstance(word, int):
            common = _mix64_int((common * 3 + _GOLDEN64 + word) & _M64)  # times 3: the order of the words matters
            continue
        value = _signed(word, 64) if isinstance(word, int) else word
        before = _signed(common * 3 + _GOLDEN64, 64) if address is None else address * 3 + _GOLDEN
        address = mix64(torch.as_tensor(value + before, device=device))
    return torch.tensor(_signed(common, 64), device=device) if address is None else address


def normal(address: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal draws, `width` for each row address.

    Args:
        address: int64, any shape (...): one address a row, from `fold`.
        width: number of coordinates.
        dtype: of the result; the draws themselves have float32 resolution (24-bit uniforms, |z| < 5.9).

    Returns:
        (..., width) tensor on the device of `address`.
    """
    rows = address.reshape(-1)
    z = torch.empty(rows.numel(), width, dtype=torch.float32, device=address.device)
    step = tile_rows(z)
    for start in range(0, rows.numel(), step):
        fill_normal(z[start : start + step], rows[start : start + step])
    return z.reshape(*address.shape, width).to(dtype)


def tile_rows(z: Tensor) -> int:
    """Rows of a (rows, width) tensor to work on at once: all on an accelerator, what fits the cache on a CPU."""
    return max(1, z.shape[0] if z.device.type != "cpu" else _TILE // max(1, z.shape[1]))


def fill_normal(z: Tensor, address: Tensor) -> None:
    """Write standard normal draws into z (rows, width) float32, for int64 addresses (rows,); for one tile."""
    width = z.shape[1]
    half = (width + 1) // 2
    low = address.to(torch.int32).unsqueeze(-1)  # (rows, 1) where the row's counter starts
    gamma = (address >> 32).to(torch.int32).unsqueeze(-1) | 1  # (rows, 1) its odd increment
    counter = torch.arange(2 * half, dtype=torch.int32, device=z.device)  # (2 half,)
    bits = torch.addcmul(low, counter, gamma)  # (rows, 2 half)
    scratch = torch.empty_like(bits)
    for shift, factor in ((16, _LOW1), (15, _LOW2), (16, 1)):  # lowbias32; a right shift of int32 keeps the sign
        torch.bitwise_right_shift(bits, shift, out=scratch)
        bits ^= scratch.bitwise_and_((1 << (32 - shift)) - 1)
        if factor != 1:
            bits *= factor
    bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-24)  # in (0, 1), ends excluded
    radius = uniform[:, :half].log_().mul_(-2.0).sqrt_()  # (rows, half)
    angle = uniform[:, half:].mul_(2.0 * math.pi)
    torch.mul(radius, angle.cos(), out=z[:, :half])
    torch.mul(radius[:, : width - half], angle.sin_()[:, : width - half], out=z[:, half:])
