"""Heads of tasks: their losses and their dropout."""

import torch
import torch.nn.functional as F

from minimoe_dist.models.configuration import MiniMoeConfig
from minimoe_dist.models.task_heads import (
    MiniMoeForSequenceClassification,
    MiniMoeForTokenClassification,
)


def config(labels: int, **changes: float) -> MiniMoeConfig:
    sizes = {"vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    return MiniMoeConfig(**sizes, intermediate_size=48, num_labels=labels, **changes)


IDS = torch.arange(5, 17).view(2, 6)


def test_the_loss_of_classes_is_the_cross_entropy() -> None:
    model = MiniMoeForSequenceClassification(config(3)).eval()
    output = model(IDS, labels=torch.tensor([0, 2]))
    assert torch.equal(output.loss, F.cross_entropy(output.logits, torch.tensor([0, 2])))


def test_one_class_means_regression() -> None:
    model = MiniMoeForSequenceClassification(config(1)).eval()
    output = model(IDS, labels=torch.tensor([1.0, 3.0]))
    wanted = ((output.logits[:, 0] - torch.tensor([1.0, 3.0])) ** 2).mean()
    assert torch.allclose(output.loss, wanted)


def test_tokens_without_a_label_do_not_count() -> None:
    model = MiniMoeForTokenClassification(config(3)).eval()
    labels = torch.full((2, 6), -100)
    labels[0, 1] = 2
    output = model(IDS, labels=labels)
    wanted = F.cross_entropy(output.logits[0, 1][None], torch.tensor([2]))
    assert torch.allclose(output.loss, wanted)


def test_the_heads_dropout_is_a_function_of_the_sample() -> None:
    for model_class in (MiniMoeForSequenceClassification, MiniMoeForTokenClassification):
        model = model_class(config(3, classifier_dropout=0.5, hidden_dropout_prob=0.0)).train()
        together = model(IDS, sample_ids=torch.tensor([7, 8]), noise_seed=1).logits
        alone = model(IDS[1:], sample_ids=torch.tensor([8]), noise_seed=1).logits
        other = model(IDS[1:], sample_ids=torch.tensor([9]), noise_seed=1).logits
        assert torch.allclose(together[1:], alone, atol=1e-6)
        assert not torch.allclose(alone, other, atol=1e-3)
