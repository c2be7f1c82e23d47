"""Keyed, stateless noise: every normal draw is a pure function of who it is for, never of when it was drawn.

A draw's address is (key, layer, text, position, sample, coordinate). The key is `hashing.stable_hash(seed, step, task
name, purpose)`, the text a hash of the token sequence the position belongs to. So the noise does not change with the
batch size, padding, the chunking of samples, a resume or the number of processes; it needs no generator, and a
checkpointed layer replays it exactly.

How: the address of a row (all but the coordinate) is mixed to 64 bits; a 32-bit counter hash of (row, coordinate)
gives uniforms, and Box-Muller turns pairs of them into normals. Integers wrap modulo 2^32 and 2^64 on every device.
Finalisers: splitmix64 (Steele et al. 2014) for rows, "lowbias32" (Wellons 2018) for coordinates.
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
_LOW1, _LOW2 = _signed(0x7FEB352D, 32), _signed(0x846CA68B, 32)
_GOLDEN32 = _signed(0x9E3779B9, 32)


def mix64(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 tensors: a bijection whose every output bit depends on every input bit."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _SPLIT1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SPLIT2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def fold(*words: int | Tensor, device: torch.device | None = None) -> Tensor:
    """Mix words (Python integers or int64 tensors that broadcast) into one int64 address, in order."""
    address = torch.zeros((), dtype=torch.int64, device=device)
    for word in words:
        value = _signed(word, 64) if isinstance(word, int) else word
        address = mix64(address * 3 + _signed(_GOLDEN64, 64) + value)  # times 3: the order of the words matters
    return address


def _mix32(x: Tensor) -> Tensor:
    """lowbias32 in place on an int32 tensor."""
    x ^= (x >> 16) & 0xFFFF
    x *= _LOW1
    x ^= (x >> 15) & 0x1FFFF
    x *= _LOW2
    x ^= (x >> 16) & 0xFFFF
    return x


def normal(address: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal draws, `width` for each row address.

    Args:
        address: int64, any shape (...): one address a row, from `fold`.
        width: number of coordinates.
        dtype: of the result; the draws themselves have float32 resolution (24-bit uniforms, |z| < 5.9).

    Returns:
        (..., width) tensor on the device of `address`.
    """
    half = (width + 1) // 2
    low = address.to(torch.int32).unsqueeze(-1)  # (..., 1) the low and the high word of the row's address
    high = (address >> 32).to(torch.int32).unsqueeze(-1)
    counter = torch.arange(2 * half, dtype=torch.int32, device=address.device) * _GOLDEN32  # (2 half,)
    bits = _mix32(_mix32(counter + low) ^ high)  # (..., 2 half)
    uniform = ((bits >> 8) & 0xFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-24)  # in (0, 1), ends excluded
    radius = uniform[..., :half].log_().mul_(-2.0).sqrt_()  # (..., half)
    angle = uniform[..., half:].mul_(2.0 * math.pi)
    z = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return z[..., :width].to(dtype)
