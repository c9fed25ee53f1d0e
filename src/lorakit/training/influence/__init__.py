"""Which training examples made a trained adapter answer as it does, and what without them."""

from lorakit.training.influence.blame import Blame, Blamed, blame
from lorakit.training.influence.retrain import Retrained, retrain_without, run_without

__all__ = ["Blame", "Blamed", "Retrained", "blame", "retrain_without", "run_without"]
