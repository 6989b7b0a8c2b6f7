"""The primitives of the plain backend, taking a flat list of arguments as the operators do."""

from __future__ import annotations

from customloss._backends import choice, plain
from customloss._spec.arguments import DIFFERENTIABLE, grouped

confusion, confusion_score, confusion_backward, sums_score = choice.primitives_of(plain)
sums_loss = grouped(plain.loss_of_sums, DIFFERENTIABLE["sums_loss"])
