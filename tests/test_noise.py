import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from abmll import noise
from abmll.adapter.modes import Tokens
from abmll.hashing import stable_hash

N = 1_000_000


def draws(*words: int | Tensor, width: int = 1000) -> Tensor:
    return noise.normal(noise.fold(*words), width, torch.float64)


@pytest.fixture(scope="module")
def million() -> Tensor:
    """1,000 rows of 1,000 draws under one key."""
    return draws(stable_hash(1, "key"), torch.arange(1000))


def test_draws_are_standard_normal(million):
    z = million.flatten()
    error = 1.0 / math.sqrt(N)  # standard errors of the first four moments of N(0, 1): 1, sqrt 2, sqrt 15, sqrt 96
    assert abs(z.mean()) < 4 * error
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2) * error
    assert abs(z.pow(3).mean()) < 4 * math.sqrt(15) * error
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96) * error
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert 4.5 < z.abs().max() < 5.9  # tails are there: P(no |z| > 4.5 in a million) is 1e-3


def test_squares_and_signs_are_independent_along_rows_and_columns(million):
    """Box-Muller's two halves share a radius; neighbours in a row and in a column have neighbouring addresses."""
    z = million
    half = z.shape[1] // 2
    neighbours = {
        "column": (z[:, :-1], z[:, 1:]),
        "row": (z[:-1], z[1:]),
        "halves": (z[:, :half], z[:, half:]),
        "diagonal": (z[:-1, :-1], z[1:, 1:]),
    }
    for name, (a, b) in neighbours.items():
        for f, sd in ((lambda t: t, 1.0), (lambda t: t.square() - 1, 2.0)):
            product = (f(a) * f(b)).mean()
            assert abs(product) < 4.5 * sd / math.sqrt(a.numel()), name


@pytest.mark.parametrize("word", range(5))
def test_every_word_of_the_address_gives_other_noise(word):
    """Key, layer, sample, text, position: changing any one, by one bit or by all, leaves no correlation."""
    base = [3, stable_hash("layer", "a"), 0, 12, 5]
    reference = draws(*base, width=100_000)
    for change in (base[word] + 1, base[word] ^ (1 << 40), -1 - base[word]):
        other = draws(*base[:word], change, *base[word + 1 :], width=100_000)
        assert abs((reference * other).mean()) < 4.5 / math.sqrt(100_000)
        assert abs(((reference.square() - 1) * (other.square() - 1)).mean()) < 4.5 * 2 / math.sqrt(100_000)


def test_the_order_of_the_words_matters():
    assert noise.fold(1, 2, 3) != noise.fold(1, 3, 2)
    assert noise.fold(0, 0) != noise.fold(0, 0, 0)


def test_consecutive_keys_are_uncorrelated_over_rows():
    """Correlation of 300 keys' draws: no pair stands out of 45,000."""
    z = draws(torch.arange(300), width=4000)
    z = z - z.mean(1, keepdim=True)
    correlation = torch.corrcoef(z)
    off = correlation[~torch.eye(300, dtype=torch.bool)] * math.sqrt(4000)
    assert off.abs().max() < 5.5
    assert off.std() == pytest.approx(1.0, abs=0.02)


def test_no_two_of_a_hundred_thousand_addresses_collide():
    addresses = noise.fold(9, 4, 0, torch.arange(250)[:, None], torch.arange(400)[None, :])
    assert addresses.unique().numel() == 100_000
    assert addresses.to(torch.int32).unique().numel() > 99_990 - 2  # the low words: about one chance collision
    assert noise.normal(addresses.flatten(), 2).unique(dim=0).shape[0] == 100_000


def test_the_finaliser_avalanches():
    """Flipping one input bit flips each output bit with probability one half."""
    x = torch.randint(-(2**62), 2**62, (2000,), generator=torch.Generator().manual_seed(0))
    for bit in (0, 1, 17, 31, 32, 45, 62):
        difference = noise.mix64(x) ^ noise.mix64(x ^ (1 << bit))
        flips = torch.stack([(difference >> k) & 1 for k in range(64)]).double().mean(1)
        assert (flips - 0.5).abs().max() < 5 * 0.5 / math.sqrt(2000)


def test_draws_are_fixed_numbers():
    """A change here changes every stored result: it must be deliberate."""
    z = noise.normal(noise.fold(stable_hash("a"), 2, torch.tensor([3, 4])), 3)
    wanted = torch.tensor([[1.6559076, 0.0967446, 1.6080080], [-0.0842786, 2.0172248, 1.8490067]])
    torch.testing.assert_close(z, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_shape_and_odd_width(dtype):
    address = noise.fold(1, torch.arange(6).reshape(2, 3))
    z = noise.normal(address, 7, dtype)
    assert z.shape == (2, 3, 7)
    assert z.dtype == dtype
    assert torch.equal(z, noise.normal(address, 7, torch.float32).to(dtype))


def test_unsigned_keys_and_their_signed_tensors_are_one_address():
    key = (1 << 64) - 5
    assert noise.fold(key, 1) == noise.fold(torch.tensor(-5), 1)


# --- who shares noise: Tokens.address --------------------------------------------------------------------------------


def tokens(text: list[list[int]], position: list[list[int]]) -> Tokens:
    t = torch.tensor(text)
    return Tokens(t, torch.tensor(position), torch.ones(t.shape))


def noise_of(who: Tokens, scope: str, key: int = 1, layer: int = 2, sample: int = 0) -> Tensor:
    return noise.normal(who.address(key, layer, sample, scope), 8)


@pytest.mark.parametrize("scope", ["token", "sequence", "batch"])
def test_noise_does_not_depend_on_batch_order_or_padding(scope):
    together = tokens([[7, 7, 7, 0], [9, 9, 9, 9]], [[0, 1, 2, 0], [0, 1, 2, 3]])
    swapped = tokens([[9, 9, 9, 9], [7, 7, 7, 0]], [[0, 1, 2, 3], [0, 1, 2, 0]])
    left_padded = tokens([[0, 0, 7, 7, 7]], [[0, 0, 0, 1, 2]])
    z = noise_of(together, scope)
    assert torch.equal(z, noise_of(swapped, scope).flip(0))
    assert torch.equal(z[0, :3], noise_of(left_padded, scope)[0, 2:])


@pytest.mark.parametrize(("scope", "distinct"), [("token", 6), ("sequence", 2), ("batch", 1)])
def test_scope_says_who_shares_a_draw(scope, distinct):
    z = noise_of(tokens([[7, 7, 7], [9, 9, 9]], [[0, 1, 2], [0, 1, 2]]), scope)
    assert z.reshape(6, 8).unique(dim=0).shape[0] == distinct


def test_a_shared_prompt_has_one_noise_in_all_rows():
    z = noise_of(tokens([[7, 7, 8], [7, 7, 9]], [[0, 1, 0], [0, 1, 0]]), "token")
    assert torch.equal(z[0, :2], z[1, :2])
    assert not torch.equal(z[0, 2], z[1, 2])


def test_default_tokens_are_rows_and_columns():
    who = Tokens.default((2, 3), torch.device("cpu"))
    assert noise_of(who, "token").reshape(6, 8).unique(dim=0).shape[0] == 6
    assert who.mask.sum() == 6
