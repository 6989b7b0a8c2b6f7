"""The words an option may be. Their order is their number in the operators and in csrc."""

ACTIVATIONS = ("sigmoid", "none", "softmax")
SIGMOID, NONE, SOFTMAX = range(3)
LINKS = ("complement", "log", "focal", "negative")
ABSENT = ("score", "skip", "penalize")
# what the operators know as averages; "micro" is "macro" over a single group
AVERAGES = ("macro", "weighted", "none")
REDUCTIONS = ("mean", "sum", "none")
WRT = ("input", "target", "weight")
INPUT, TARGET, WEIGHT = range(3)
