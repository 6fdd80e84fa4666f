import torch

from ml_backend.model.generators import generator, seeded
from ml_backend.seeding import derive


def test_every_purpose_has_its_own_stream() -> None:
    assert derive(0, "masks") != derive(0, "order") != derive(1, "order")
    # printf '0|masks' | sha256sum: b7723ed8d942a81b..., halved. A changed derivation would change every ranking.
    assert derive(0, "masks") == 0xB7723ED8D942A81B >> 1
    assert 0 <= derive(-5, "x") < 2**63


def test_generator_is_seeded() -> None:
    assert torch.equal(torch.rand(4, generator=generator(3, "a")), torch.rand(4, generator=generator(3, "a")))
    assert not torch.equal(torch.rand(4, generator=generator(3, "a")), torch.rand(4, generator=generator(4, "a")))


def test_seeded_puts_the_global_state_back() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with seeded(0, "x"):
        inside = torch.rand(3)
    with seeded(0, "x"):
        assert torch.equal(torch.rand(3), inside)

    assert torch.equal(torch.rand(3), expected)
