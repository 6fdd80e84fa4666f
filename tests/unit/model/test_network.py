import pytest
import torch
from torch import Tensor, nn

from ml_backend.model.network import DropoutHead, McDropoutClassifier, evaluating

PASSES = 6


class FixedMask(nn.Module):
    """Stands where the dropout stood and applies one given mask."""

    def __init__(self, mask: Tensor, dropout: float) -> None:
        super().__init__()
        self.mask, self.dropout = mask, dropout

    def forward(self, features: Tensor) -> Tensor:
        return features * self.mask / (1.0 - self.dropout)


def classifier(dropout: float = 0.5) -> McDropoutClassifier:
    torch.manual_seed(0)
    network = McDropoutClassifier(3, "shufflenet_v2_x0_5", "none", dropout)
    # As after training: statistics and weights that are not the identity.
    network.head.norm.running_mean.normal_()  # type: ignore[union-attr]
    network.head.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    with torch.no_grad():
        network.head.norm.weight.uniform_(0.5, 1.5)
    network.head.feature_mean.uniform_(0.0, 1.0)
    network.head.feature_scale.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> McDropoutClassifier:
    return classifier()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))


class TestMcProbs:
    def test_equals_whole_forward_passes_under_the_same_masks(
        self, network: McDropoutClassifier, images: Tensor
    ) -> None:
        probs = network.mc_probs(images, PASSES, seed=3)

        whole = []
        dropout = network.head.dropout
        for mask in network.head.masks(PASSES, seed=3):
            network.head.dropout = FixedMask(mask, 0.5)  # type: ignore[assignment]
            with torch.inference_mode():
                whole.append(network(images).softmax(dim=-1))
        network.head.dropout = dropout
        assert probs.shape == (5, PASSES, 3)
        assert torch.allclose(probs, torch.stack(whole, dim=1), atol=1e-5)

    def test_alone_as_in_a_batch(self, network: McDropoutClassifier, images: Tensor) -> None:
        together = network.mc_probs(images, PASSES, seed=3)

        assert torch.allclose(network.mc_probs(images[2:3], PASSES, seed=3)[0], together[2], atol=1e-5)

    def test_loader_of_any_batch_size(self, network: McDropoutClassifier, images: Tensor) -> None:
        together = network.mc_probs(images, PASSES, seed=3)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(5)), batch_size=2)

        assert torch.allclose(network.mc_probs(loader, PASSES, seed=3), together, atol=1e-5)
        assert torch.allclose(network.mc_probs([images[:3], images[3:]], PASSES, seed=3), together, atol=1e-5)

    def test_spread_comes_from_the_dropout_alone(self, network: McDropoutClassifier, images: Tensor) -> None:
        assert bool((network.mc_probs(images, PASSES).std(dim=1) > 0).all())
        still = classifier(dropout=0.0).mc_probs(images, PASSES)
        assert torch.equal(still, still[:, :1].expand_as(still))

    def test_leaves_the_network_as_it_was(self, images: Tensor) -> None:
        network = classifier()
        network.train()
        network.backbone.eval()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

        network.mc_probs(images, PASSES)

        assert network.training
        assert network.head.norm.training
        assert not network.backbone.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    def test_seed(self, network: McDropoutClassifier, images: Tensor) -> None:
        assert not torch.equal(network.mc_probs(images, 2, seed=0), network.mc_probs(images, 2, seed=1))

    def test_no_image(self, network: McDropoutClassifier) -> None:
        assert network.mc_probs([], PASSES).shape == (0, PASSES, 3)
        assert network.mc_probs(torch.empty(0, 3, 32, 32), PASSES).shape == (0, PASSES, 3)


class TestDropoutHead:
    def test_is_the_papers_head(self) -> None:
        head = DropoutHead(8, 3, 0.5).eval()
        features = torch.randn(4, 8)
        papers = nn.Sequential(head.dropout, head.hidden, head.norm, nn.ReLU(), head.output)

        assert torch.allclose(head(features), papers(features), atol=1e-6)

    def test_gradient_factors_are_autograds_gradient(self, network: McDropoutClassifier) -> None:
        """Of cross-entropy at the class that the network itself would answer, in the last layer's weights."""
        head = network.head
        features = 9 * torch.randn(9, 1024, generator=torch.Generator().manual_seed(2))
        head.train()

        residuals, hidden = head.gradient_factors(features)

        assert head.training
        head.eval()
        answers = head(features).argmax(dim=-1)
        assert len(set(answers.tolist())) > 1
        for row, answer in enumerate(answers):
            loss = nn.functional.cross_entropy(head(features[row : row + 1]), answer[None])
            (gradient,) = torch.autograd.grad(loss, [head.output.weight])
            assert torch.allclose(torch.outer(residuals[row], hidden[row]), gradient, atol=1e-5)

    def test_gradient_factors_hand_computed(self) -> None:
        """Probabilities 0.75 and 0.25 (logits log 3 and 0): residuals -0.25 and 0.25; nothing dropped, nothing scaled.

        Of the hidden layer's two kinds of units one is positive, 2, and one negative, 0 after the ReLU.
        """
        head = DropoutHead(1, 2, 0.5)
        head.norm.eps = 0.0
        with torch.no_grad():
            head.hidden.weight.copy_(torch.tensor([1.0, -1.0]).repeat(256)[:, None])
            head.hidden.bias.zero_()
            head.output.weight.zero_()
            head.output.bias.copy_(torch.tensor([3.0, 1.0]).log())

        residuals, hidden = head.gradient_factors(torch.tensor([[2.0]]))

        assert residuals[0].tolist() == pytest.approx([-0.25, 0.25])
        assert hidden[0].tolist() == pytest.approx([2.0, 0.0] * 256)

    def test_standardise(self) -> None:
        """Values 0 and 2 of one feature become -1 and 1; a constant feature becomes 0."""
        head = DropoutHead(2, 2, 0.5).eval()
        head.standardise(torch.tensor([[0.0, 7.0], [2.0, 7.0]]))

        assert head.feature_mean.tolist() == [1.0, 7.0]
        assert head.feature_scale.tolist() == [1.0, 0.0]


def test_refuses_a_single_class() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        McDropoutClassifier(1, "shufflenet_v2_x0_5", "none")


def test_evaluating_puts_modes_back_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    network[1].eval()

    def fail() -> None:
        with evaluating(network):
            assert not network[0].training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
