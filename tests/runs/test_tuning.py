"""What fine-tuning's results say of what was not tried."""

import pytest

from minimoe_dist.runs.tuning import CellResult, EpochResult, SettingResult, TuningResults


def results(means: dict[float, float | None], best_epochs: dict[float, list[int]]) -> TuningResults:
    """Cells of three epochs by rate, each with its best one; and the rates' means."""
    epochs = [EpochResult(epoch=number) for number in (1, 2, 3)]
    return TuningResults(
        task="ner",
        metric="chunk_f1",
        model="student",
        cells=[
            CellResult(
                seed=seed, learning_rate=rate, batch_size=32, best_epoch=epoch, epochs=epochs
            )
            for rate, chosen in best_epochs.items()
            for seed, epoch in enumerate(chosen)
        ],
        settings=[
            SettingResult(learning_rate=rate, batch_size=32, mean=mean)
            for rate, mean in means.items()
        ],
    )


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ({1e-4: 0.5, 3e-4: 0.6, 1e-3: 0.7}, ["the best rate, 0.001, is the largest"]),
        ({1e-4: 0.8, 3e-4: 0.6, 1e-3: 0.7}, ["the best rate, 0.0001, is the smallest"]),
        ({1e-4: 0.5, 3e-4: 0.8, 1e-3: 0.7}, []),
        ({3e-4: 0.8}, []),
        ({1e-4: None, 3e-4: None}, []),
    ],
)
def test_a_best_rate_at_an_end_of_those_tried_is_told(
    means: dict[float, float | None], words: list[str]
) -> None:
    found = results(means, {rate: [2, 3] for rate in means}).open_ends
    assert [one[: len(start)] for one, start in zip(found, words, strict=True)] == words


def test_training_that_still_gained_is_told() -> None:
    means = {1e-4: 0.5, 3e-4: 0.8, 1e-3: 0.7}
    rising = results(means, {1e-4: [1, 1], 3e-4: [3, 3], 1e-3: [1, 1]}).open_ends
    assert len(rising) == 1 and rising[0].startswith("rate 0.0003 is best after its last epoch")
    assert results(means, {1e-4: [3, 3], 3e-4: [3, 2], 1e-3: [3, 3]}).open_ends == []
