"""The plain backend, each primitive with one flat list of arguments, as the operators have it."""

from __future__ import annotations

from customloss._backends import choice, plain
from customloss._spec.arguments import DIFFERENTIABLE, PRIMITIVES, grouped

_primitives = choice.primitives_of(plain)
confusion = grouped(_primitives.confusion, PRIMITIVES["confusion"])
confusion_score = grouped(_primitives.confusion_score, PRIMITIVES["confusion_score"])
confusion_backward = grouped(_primitives.confusion_backward, PRIMITIVES["confusion_backward"])
sums_score = grouped(_primitives.sums_score, PRIMITIVES["sums_score"])
sums_loss = grouped(plain.loss_of_sums, DIFFERENTIABLE["sums_loss"])
