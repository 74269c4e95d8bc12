import time

from torch.utils.data import Dataset

from mrcnn_lightning.data.loader import TimedLoader


class Slow(Dataset[int]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


def test_only_waiting_counts() -> None:
    loader = TimedLoader(Slow(), batch_size=2)
    for epoch in (1, 2):
        seen = []
        for batch in loader:
            seen += batch.tolist()
            time.sleep(0.1)  # the user's own time
        assert seen == list(range(6))
        assert 0.12 * epoch <= loader.seconds_waited < 0.12 * epoch + 0.15
