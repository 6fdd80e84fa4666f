"""Who may help to score a pool: machines that give the same bits."""

import torch

from ml_backend.model.scoring import machine


class TestMachine:
    def test_another_number_of_threads_is_another_machine(self):
        """Sums are taken in another order."""
        threads = torch.get_num_threads()
        before = machine("cpu")
        try:
            torch.set_num_threads(threads + 1)
            assert machine("cpu") != before
        finally:
            torch.set_num_threads(threads)
