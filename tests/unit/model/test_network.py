import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ml_backend.model.network import (
    DropoutHead,
    McDropoutClassifier,
    draw_masks,
    evaluating,
    fold_batch_norm,
    head_passes,
    rechunk,
)

PASSES = 6


class FixedMask(nn.Module):
    """Replaces dropout by one given mask."""

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

    def test_any_batch_size(self, network: McDropoutClassifier, images: Tensor) -> None:
        together = network.mc_probs(images, PASSES, seed=3)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(5)), batch_size=2)

        assert torch.allclose(network.mc_probs(loader, PASSES, seed=3), together, atol=1e-5)
        assert torch.allclose(network.mc_probs([images[:1], images[1:]], PASSES, seed=3), together, atol=1e-5)

    def test_passes_differ_by_dropout_alone(self, network: McDropoutClassifier, images: Tensor) -> None:
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
        """Of cross-entropy at the predicted class, in the last layer's weights."""
        head = network.head
        features = 9 * torch.randn(9, 1024, generator=torch.Generator().manual_seed(2))
        head.train()

        residuals, hidden = head.gradient_factors(features)

        assert head.training
        head.eval()
        predicted = head(features).argmax(dim=-1)
        assert len(set(predicted.tolist())) > 1
        for row, label in enumerate(predicted):
            loss = nn.functional.cross_entropy(head(features[row : row + 1]), label[None])
            (gradient,) = torch.autograd.grad(loss, [head.output.weight])
            assert torch.allclose(torch.outer(residuals[row], hidden[row]), gradient, atol=1e-5)

    def test_gradient_factors_hand_computed(self) -> None:
        """Probabilities 0.75 and 0.25 (logits log 3 and 0): residuals -0.25 and 0.25; no dropout.

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
        head.fit_standardisation(torch.tensor([[0.0, 7.0], [2.0, 7.0]]))

        assert head.feature_mean.tolist() == [1.0, 7.0]
        assert head.feature_scale.tolist() == [1.0, 0.0]


def test_single_class() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        McDropoutClassifier(1, "shufflenet_v2_x0_5", "none")


def test_evaluating_restores_modes_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    network[1].eval()

    def fail() -> None:
        with evaluating(network):
            assert not network[0].training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (network.training, network[0].training, network[1].training) == (True, True, False)


class TestDrawMasks:
    def test_rate_and_seed(self) -> None:
        masks = draw_masks(50, 2000, 0.3, seed=1)

        assert masks.shape == (50, 2000)
        assert float(masks.float().mean()) == pytest.approx(0.7, abs=0.01)
        assert torch.equal(masks, draw_masks(50, 2000, 0.3, seed=1))
        assert not torch.equal(masks, draw_masks(50, 2000, 0.3, seed=2))
        assert len({tuple(row.tolist()) for row in masks}) == 50

    def test_more_passes_extend_fewer(self) -> None:
        assert torch.equal(draw_masks(9, 33, 0.5, 0)[:4], draw_masks(4, 33, 0.5, 0))

    def test_without_dropout_all_features_are_kept(self) -> None:
        assert bool(draw_masks(3, 100, 0.0, 0).all())

    @pytest.mark.parametrize(("passes", "dropout"), [(0, 0.5), (1, 1.0), (1, -0.1)])
    def test_refuses(self, passes: int, dropout: float) -> None:
        with pytest.raises(ValueError, match="got"):
            draw_masks(passes, 4, dropout, 0)


class TestFoldBatchNorm:
    def test_is_the_two_layers_in_eval_mode(self) -> None:
        torch.manual_seed(0)
        hidden, norm = nn.Linear(7, 5), nn.BatchNorm1d(5)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.normal_()
        norm.train()(hidden(torch.randn(50, 7) * 3 + 1))
        norm.eval()
        inputs = torch.randn(4, 7)

        weight, bias = fold_batch_norm(hidden, norm)

        assert torch.allclose(inputs @ weight.T + bias, norm(hidden(inputs)), atol=1e-5)

    def test_no_statistics(self) -> None:
        with pytest.raises(ValueError, match="running statistics"):
            fold_batch_norm(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))


class TestHeadPasses:
    def test_hand_computed(self) -> None:
        """Two features, three passes: keep both, the first, none; kept features are doubled at p = 0.5.

        Hidden = relu(x1 - x2), logits = (hidden, 0): sigmoid(2 * (3 - 1)), sigmoid(2 * 3), sigmoid(0).
        """
        output = nn.Linear(1, 2)
        with torch.no_grad():
            output.weight.copy_(torch.tensor([[1.0], [0.0]]))
            output.bias.zero_()
        masks = torch.tensor([[True, True], [True, False], [False, False]])
        hidden = (torch.tensor([[1.0, -1.0]]), torch.zeros(1))

        with torch.no_grad():
            probs = head_passes(torch.tensor([[3.0, 1.0]]), masks, hidden, output, 0.5)

        expected = torch.sigmoid(torch.tensor([4.0, 6.0, 0.0])).tolist()
        assert probs.shape == (1, 3, 2)
        assert probs[0, :, 0].tolist() == pytest.approx(expected)
        assert probs.sum(dim=-1).flatten().tolist() == pytest.approx([1.0] * 3)

    @given(
        images=st.integers(0, 4),
        passes=st.integers(1, 11),
        dropout=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
        seed=st.integers(0, 99),
    )
    @settings(deadline=None, max_examples=40)
    def test_is_pass_by_pass(self, images: int, passes: int, dropout: float, seed: int) -> None:
        """Features that several passes keep are multiplied once; the reference computes each pass by itself."""
        torch.manual_seed(seed)
        output, masks = nn.Linear(6, 3), draw_masks(passes, 9, dropout, seed)
        weight, bias = torch.randn(6, 9), torch.randn(6)
        features = torch.randn(images, 9)

        with torch.no_grad():
            probs = head_passes(features, masks, (weight, bias), output, dropout)
            dropped = features[:, None].double() * masks / (1.0 - dropout)
            hidden = (dropped @ weight.double().T + bias.double()).relu()
            expected = output.double()(hidden).softmax(dim=-1)

        assert probs.shape == (images, passes, 3)
        assert probs.is_contiguous()
        assert torch.allclose(probs.double(), expected, atol=1e-5)

    def test_more_images_than_go_through_together(self) -> None:
        """The result does not depend on the boundaries between groups of 256."""
        torch.manual_seed(0)
        output, masks = nn.Linear(6, 3), draw_masks(6, 8, 0.5, 0)
        hidden = (torch.randn(6, 8), torch.randn(6))
        features = torch.randn(600, 8)

        with torch.no_grad():
            together = head_passes(features, masks, hidden, output, 0.5)
            parts = [head_passes(part, masks, hidden, output, 0.5) for part in torch.split(features, 100)]

        assert torch.allclose(together, torch.cat(parts), atol=1e-6)

    def test_restores_the_number_of_threads(self) -> None:
        before = torch.get_num_threads()
        head_passes(torch.ones(1, 2), draw_masks(1, 2, 0.5, 0), (torch.ones(1, 2), torch.ones(1)), nn.Linear(1, 2), 0.5)

        assert torch.get_num_threads() == before


class TestRechunk:
    @given(sizes=st.lists(st.integers(0, 9), max_size=8), rows=st.integers(1, 12))
    @settings(deadline=None, max_examples=30)
    def test_same_rows_in_larger_chunks(self, sizes: list[int], rows: int) -> None:
        everything = torch.arange(float(sum(sizes)))[:, None]

        chunks = list(rechunk(torch.split(everything, sizes), rows))

        assert torch.equal(torch.cat([*chunks, torch.empty(0, 1)]), everything)
        assert all(len(chunk) >= rows for chunk in chunks[:-1])
        assert all(len(chunk) for chunk in chunks)
