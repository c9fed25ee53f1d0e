"""Which evaluations' predictions are kept, and in which order."""

from types import SimpleNamespace

import numpy as np
from torch.utils.data import DataLoader

from lorakit.analysis.example_scores import ExampleScores
from lorakit.training.trainers.kept_predictions import KeptPredictionsMixin


class _Evaluates:
    """The part of a Trainer that evaluates."""

    example_scores = None

    def evaluation_loop(self, dataloader, *args, **kwargs):
        return SimpleNamespace(predictions=self.scores, label_ids=[0, 0], metrics={})


class _Trainer(KeptPredictionsMixin, _Evaluates):
    def __init__(self):
        super().__init__()
        self.state = SimpleNamespace(global_step=0, best_global_step=None)
        self.scores = [1, 2]
        self.callback_handler = SimpleNamespace(callbacks=[])

    def evaluate_at(self, step, best=None):
        self.state.global_step, self.state.best_global_step = step, best
        return self.evaluation_loop(DataLoader([5, 6], sampler=[1, 0]), metric_key_prefix="eval")


def test_the_latest_and_the_best_are_kept():
    trainer = _Trainer()
    trainer.read_predictions = lambda found: (trainer.state.global_step, found.order)
    for step, best in ((1, None), (2, 1), (3, 2), (4, 2)):
        trainer.evaluate_at(step, best)
    assert trainer.evaluation_at(4).predicted == (4, [1, 0])
    assert trainer.evaluation_at(2).predicted == (2, [1, 0])
    assert trainer.evaluation_at(1) is None and trainer.evaluation_at(3) is None


def test_nothing_is_kept_unless_it_can_be_read():
    trainer = _Trainer()
    trainer.evaluate_at(1)
    trainer.read_predictions = lambda found: found
    trainer.scores = None  # the loss alone was asked for
    trainer.evaluate_at(2)
    assert trainer.evaluation_at(1) is None
    assert trainer.evaluation_at(2).predicted is None


def test_losses_are_kept_in_the_order_of_the_data():
    trainer = _Trainer()
    trainer.example_scores = ExampleScores(
        "perplexity", np.array([10.0, 3.0]), np.array([2.0, 1.0])
    )
    trainer.evaluate_at(1)
    kept = trainer.evaluation_at(1)
    assert kept.predicted is None
    scores = kept.example_scores
    assert scores.points.tolist() == [3, 10] and scores.weights.tolist() == [1, 2]


def test_an_evaluation_apart_leaves_no_trace():
    trainer = _Trainer()
    trainer.read_predictions = lambda found: found.order
    trainer.evaluate_at(1)
    trainer.state.log_history = ["before"]
    callbacks = trainer.callback_handler.callbacks = [print]
    with trainer.evaluating_apart():
        assert trainer.callback_handler.callbacks == [] and trainer.evaluation_at(1) is None
        trainer.state.log_history.append("apart")
        trainer.evaluate_at(2)
        assert trainer.evaluation_at(2).predicted == [1, 0]
    assert trainer.evaluation_at(2) is None and trainer.evaluation_at(1).predicted == [1, 0]
    assert trainer.callback_handler.callbacks is callbacks
    assert trainer.state.log_history == ["before"]
