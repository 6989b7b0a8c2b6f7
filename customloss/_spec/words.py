"""The words that an option can be set to. The place of a word in its tuple is its number in the
operators; the enums of csrc/element.h, csrc/pixel.h and csrc/score.h have the same numbers."""

ACTIVATIONS = ("sigmoid", "none", "softmax")
SIGMOID, NONE, SOFTMAX = range(3)
# those of the operators; scores.LINKS has every one
FUSED_LINKS = ("complement", "log", "focal", "negative")
ABSENT = ("score", "skip", "penalize")
# the averages of the operators, which know no "micro": it is "macro" over a single group
AVERAGES = ("macro", "weighted", "none")
REDUCTIONS = ("mean", "sum", "none")
OUT_OF_RANGE = ("raise", "ignore")
NAN_TARGETS = ("propagate", "ignore")
RAISE, IGNORE = range(2)  # of OUT_OF_RANGE; IGNORE is that of NAN_TARGETS too
WRT = ("input", "target", "weight")
INPUT, TARGET, WEIGHT = range(3)
