"""What a fine-tuning run writes down of its cells."""

import json
from dataclasses import asdict

from minimoe_dist.train.finetuning import TuningState
from minimoe_dist.train.finetuning_results import Cell, cell_result


def test_a_resumed_cells_score_is_the_one_that_decides() -> None:
    scores = {"chunk_f1": 0.25, "accuracy": 0.97}
    record = {"epoch": 1, "train_loss": 0.5, "seconds": 1.0, "scores": scores}
    state = TuningState(epochs=[record], best_epoch=1, best_score=0.25)
    # Checkpoints have their keys in the alphabet's order.
    saved = json.loads(json.dumps(asdict(state), sort_keys=True))
    result = cell_result(Cell(1, 1e-5, 32), TuningState(**saved), diverged=False)
    assert result.score == 0.25


def test_a_cell_without_an_epoch_has_no_score() -> None:
    assert cell_result(Cell(1, 1e-5, 32), TuningState(), diverged=True).score is None
