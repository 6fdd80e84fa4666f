import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ml_backend.model.inference import draw_masks, fold_norm, head_passes, regroup


class TestDrawMasks:
    def test_share_and_seed(self) -> None:
        masks = draw_masks(50, 2000, 0.3, seed=1)

        assert masks.shape == (50, 2000)
        assert float(masks.float().mean()) == pytest.approx(0.7, abs=0.01)
        assert torch.equal(masks, draw_masks(50, 2000, 0.3, seed=1))
        assert not torch.equal(masks, draw_masks(50, 2000, 0.3, seed=2))
        # Passes differ from each other.
        assert len({tuple(row.tolist()) for row in masks}) == 50

    def test_more_passes_prolong_fewer(self) -> None:
        assert torch.equal(draw_masks(9, 33, 0.5, 0)[:4], draw_masks(4, 33, 0.5, 0))

    def test_without_dropout_all_is_kept(self) -> None:
        assert bool(draw_masks(3, 100, 0.0, 0).all())

    @pytest.mark.parametrize(("passes", "dropout"), [(0, 0.5), (1, 1.0), (1, -0.1)])
    def test_refuses(self, passes: int, dropout: float) -> None:
        with pytest.raises(ValueError, match="got"):
            draw_masks(passes, 4, dropout, 0)


class TestFoldNorm:
    def test_is_the_two_layers_in_eval_mode(self) -> None:
        torch.manual_seed(0)
        hidden, norm = nn.Linear(7, 5), nn.BatchNorm1d(5)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.normal_()
        norm.train()(hidden(torch.randn(50, 7) * 3 + 1))
        norm.eval()
        inputs = torch.randn(4, 7)

        weight, bias = fold_norm(hidden, norm)

        assert torch.allclose(inputs @ weight.T + bias, norm(hidden(inputs)), atol=1e-5)

    def test_refuses_what_has_no_statistics(self) -> None:
        with pytest.raises(ValueError, match="running statistics"):
            fold_norm(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))


class TestHeadPasses:
    def test_hand_computed(self) -> None:
        """Two features, three passes: keep both, the first, none; what is kept is doubled at p = 0.5.

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
        """What several passes keep is multiplied once; the reference masks and multiplies for each pass anew."""
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
        """The seams between them do not show: 256 at a time."""
        torch.manual_seed(0)
        output, masks = nn.Linear(6, 3), draw_masks(6, 8, 0.5, 0)
        hidden = (torch.randn(6, 8), torch.randn(6))
        features = torch.randn(600, 8)

        with torch.no_grad():
            together = head_passes(features, masks, hidden, output, 0.5)
            parts = [head_passes(part, masks, hidden, output, 0.5) for part in torch.split(features, 100)]

        assert torch.allclose(together, torch.cat(parts), atol=1e-6)

    @given(images=st.integers(0, 5), passes=st.integers(1, 4), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=20)
    def test_image_by_image_is_all_at_once(self, images: int, passes: int, seed: int) -> None:
        torch.manual_seed(seed)
        output, masks = nn.Linear(6, 3), draw_masks(passes, 8, 0.4, seed)
        hidden = (torch.randn(6, 8), torch.randn(6))
        features = torch.randn(images, 8)

        with torch.no_grad():
            together = head_passes(features, masks, hidden, output, 0.4)
            alone = [head_passes(row[None], masks, hidden, output, 0.4)[0] for row in features]

        assert together.shape == (images, passes, 3)
        for row, other in zip(together, alone, strict=True):
            assert torch.allclose(row, other, atol=1e-6)

    def test_leaves_the_threads_as_they_were(self) -> None:
        before = torch.get_num_threads()
        head_passes(torch.ones(1, 2), draw_masks(1, 2, 0.5, 0), (torch.ones(1, 2), torch.ones(1)), nn.Linear(1, 2), 0.5)

        assert torch.get_num_threads() == before


class TestRegroup:
    @given(sizes=st.lists(st.integers(0, 9), max_size=8), rows=st.integers(1, 12))
    @settings(deadline=None, max_examples=30)
    def test_same_rows_in_larger_chunks(self, sizes: list[int], rows: int) -> None:
        everything = torch.arange(float(sum(sizes)))[:, None]

        chunks = list(regroup(torch.split(everything, sizes), rows))

        assert torch.equal(torch.cat([*chunks, torch.empty(0, 1)]), everything)
        assert all(len(chunk) >= rows for chunk in chunks[:-1])
        assert all(len(chunk) for chunk in chunks)
