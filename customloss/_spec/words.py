"""The words that an option can be set to. The place of a word in its tuple is its number in the
operators; the enums of csrc/element.h and csrc/score.h have the same numbers."""

ACTIVATIONS = ("sigmoid", "none", "softmax")
SIGMOID, NONE, SOFTMAX = range(3)
LINKS = ("complement", "log", "focal", "negative")
ABSENT = ("score", "skip", "penalize")
# the averages of the operators, which know no "micro": it is "macro" over a single group
AVERAGES = ("macro", "weighted", "none")
REDUCTIONS = ("mean", "sum", "none")
WRT = ("input", "target", "weight")
INPUT, TARGET, WEIGHT = range(3)
