"""What a worker does with a run's name."""

from ml_backend.simulation import parallel as job


class TestJob:
    def test_tells_why_it_cannot_be_done(self, tmp_path):
        """A refusal in words is a result: another worker would refuse too."""
        assert job.run(str(tmp_path), "entropy-s0") == (
            f"run entropy-s0: {tmp_path} holds no plan.json: "
            "workers need --out, the tables and images in a shared folder"
        )
