// Closed forms of the built-in losses: the loss of one group from its four sums, its gradient by
// each of them, and its share of an average over groups or of a pointwise loss.  average.h and the
// kernels of cuda/finish.cuh and cuda/score.cuh loop over the groups.  Everything is float64, as
// there are only a few numbers.
//
//   similarity  S = (A tp + s) / (A tp + B fp + C fn + d)
//   complement  1 - S = M / (A tp + B fp + C fn + d), M = B fp + C fn + (d - s): no cancellation
//               near 0
//   log         -log max(S, floor); -log S = log1p(M / (A tp + s))
//   focal       (1 - S)^gamma
//   negative    -S
//   pointwise   (a LP + b LN + c FP + d FN) / (u (tp + fn) + v (fp + tn) + s S), each a sum over
//               all groups, and over 1 if u, v and s are 0; LP and LN are the sums of the log-loss,
//               FP and FN those of the focal terms, S is the support (pixel.h)
//
// (A, B, C) = (1 + beta^2, 1, beta^2) is F-beta, (2, 1, 1) Dice, (1, 1, 1) Jaccard and
// (1, fp_weight, fn_weight) Tversky.  Compiled for the host and for the device.
#pragma once

#include <cmath>
#include <cstdint>

#include "element.h"

namespace customloss {

// Mirrored by customloss/_spec/words.py.  An operator takes no number beyond kLast.
enum class Link : int64_t {
  kComplement = 0,
  kLog = 1,
  kFocal = 2,
  kNegative = 3,
  kLast = kNegative
};
enum class Absent : int64_t { kScore = 0, kSkip = 1, kPenalize = 2, kLast = kPenalize };
// Over classes.
enum class Average : int64_t { kMean = 0, kWeighted = 1, kNone = 2, kLast = kNone };
// Over what the average leaves.
enum class Reduction : int64_t { kMean = 0, kSum = 1, kNone = 2, kLast = kNone };

struct Score {
  double tp_weight, fp_weight, fn_weight;
  double smooth, smooth_denominator;  // s and d; s <= d, except for the links that are linear in S
  double gamma, log_floor;
  Link link;
  Absent absent;
};

// The four sums of one group, or the derivatives by them.
struct Sums {
  double tp, fp, fn, tn;
};

// `support` is tp + fn; a group that is not `counted` is left out of every mean.
struct GroupLoss {
  double value;
  Sums grad;
  double support;
  bool counted;
};

// A loss beside the score, as one ratio of sums over many groups: a cross-entropy, a focal loss.
struct Factors {
  double score_weight;          // factor of the score beside it
  double log_pos, log_neg;      // a, b: 0 where the row does not exist or does not count
  double focal_pos, focal_neg;  // c, d
  double positives, negatives;  // u, v
  double support;               // s

  CUSTOMLOSS_HD bool present() const {
    return log_pos != 0.0 || log_neg != 0.0 || focal_pos != 0.0 || focal_neg != 0.0;
  }
  // Whether the loss is divided by sums; if not, it is divided by 1.
  CUSTOMLOSS_HD bool divided() const {
    return positives != 0.0 || negatives != 0.0 || support != 0.0;
  }
};

// These factors, and the rows of the sums that they are factors of.
struct Pointwise : Factors {
  int log_row, focal_row, support_row;  // of LP, FP and S; LN and FN are the next rows
};

// Numerator and denominator of a pointwise loss: of one group, or summed over several.
struct Lost {
  double numerator, divisor;

  CUSTOMLOSS_HD double ratio() const { return divisor != 0.0 ? numerator / divisor : 0.0; }
};

namespace {

constexpr double kMaxDouble = 0x1.fffffffffffffp+1023;  // the largest finite number

// The linked similarity and its gradient.  0 / 0 (an empty group that is predicted empty)
// counts as a similarity of 1 with gradient 0.
CUSTOMLOSS_HD GroupLoss similarity_loss(const Score& score, const Sums& sums) {
  const double true_hit = score.tp_weight * sums.tp;
  const double wrong = score.fp_weight * sums.fp + score.fn_weight * sums.fn;
  const double hit = true_hit + score.smooth;
  const double miss = wrong + (score.smooth_denominator - score.smooth);
  const double whole = true_hit + wrong + score.smooth_denominator;
  GroupLoss loss{0.0, {0.0, 0.0, 0.0, 0.0}, sums.tp + sums.fn, true};
  if (whole == 0.0) {
    loss.value = score.link == Link::kNegative ? -1.0 : 0.0;
    return loss;
  }
  // In the gradients, shares of the whole are multiplied first: weights may be as large as 1e200.
  const double similarity = hit / whole;
  if (score.link == Link::kLog) {
    if (similarity < score.log_floor) {  // constant from here on
      loss.value = -log(score.log_floor);
      return loss;
    }
    loss.value = log1p(miss / hit);
    loss.grad.tp = -(miss / hit) * score.tp_weight / whole;
    loss.grad.fp = score.fp_weight / whole;
    loss.grad.fn = score.fn_weight / whole;
    return loss;
  }
  const double complement = miss / whole;
  double slope = 1.0;
  loss.value = complement;
  if (score.link == Link::kNegative) loss.value = -similarity;
  if (score.link == Link::kFocal) {
    loss.value = pow(complement, score.gamma);
    // A perfect group gets slope 0 (1 if gamma is 1): for gamma < 1 the formula is infinite there.
    slope = complement > 0.0 || complement != complement
                ? score.gamma * pow(complement, score.gamma - 1.0)
                : (score.gamma == 1.0 ? 1.0 : 0.0);
  }
  loss.grad.tp = -(slope * complement) * score.tp_weight / whole;
  loss.grad.fp = slope * (similarity * score.fp_weight / whole);
  loss.grad.fn = slope * (similarity * score.fn_weight / whole);
  return loss;
}

// The loss of a group.  If the group has no positive target, `absent` says what to make of it.
CUSTOMLOSS_HD GroupLoss group_loss(const Score& score, const Sums& sums) {
  GroupLoss loss = similarity_loss(score, sums);
  const bool broken = sums.fp != sums.fp;  // a NaN is no absent class and has to reach the loss
  if (score.absent == Absent::kScore || loss.support != 0.0 || broken) return loss;
  loss.value = 0.0;
  loss.grad = {0.0, 0.0, 0.0, 0.0};
  if (score.absent == Absent::kSkip) {
    loss.counted = false;
    return loss;
  }
  const double negatives = sums.fp + sums.tn;
  if (negatives != 0.0) {
    loss.value = sums.fp / negatives;
    loss.grad.fp = (sums.tn / negatives) / negatives;
    loss.grad.tn = -loss.value / negatives;
  }
  return loss;
}

// The weight of a group in the average over the classes of its sample.
CUSTOMLOSS_HD double group_weight(Average average, const GroupLoss& loss, double class_weight) {
  if (!loss.counted || class_weight == 0.0) return 0.0;
  return class_weight * (average == Average::kWeighted ? loss.support : 1.0);
}

// d(average)/d(sums) of one group, given the average over its sample's classes and their total
// weight.  Where the support tp + fn is the weight, its change moves the average too.
CUSTOMLOSS_HD Sums averaged_grad(Average average, const GroupLoss& loss, double class_weight,
                                 double mean, double total_weight, double outer) {
  if (total_weight == 0.0 || class_weight == 0.0 || !loss.counted) return {0.0, 0.0, 0.0, 0.0};
  const double inner = outer * group_weight(average, loss, class_weight) / total_weight;
  Sums grad{loss.grad.tp * inner, loss.grad.fp * inner, loss.grad.fn * inner, loss.grad.tn * inner};
  if (average == Average::kWeighted) {
    const double shift = outer * class_weight * (loss.value - mean) / total_weight;
    grad.tp += shift;
    grad.fn += shift;
  }
  return grad;
}

// Both sums of a pointwise loss, given what the groups add to them.
CUSTOMLOSS_HD Lost whole_lost(const Factors& factors, double numerator, double divisor) {
  return {numerator, factors.divided() ? divisor : 1.0};
}

// What one group of the sums [rows, groups] adds to the two sums of a pointwise loss.
CUSTOMLOSS_HD Lost group_lost(const Pointwise& pointwise, const double* sums, int64_t groups,
                              int64_t group, double class_weight) {
  if (class_weight == 0.0) return {0.0, 0.0};  // the group adds nothing, not even a NaN
  const double* own = sums + group;
  double numerator = 0.0;
  if (pointwise.log_pos != 0.0) numerator += pointwise.log_pos * own[pointwise.log_row * groups];
  if (pointwise.log_neg != 0.0) {
    numerator += pointwise.log_neg * own[(pointwise.log_row + 1) * groups];
  }
  const double* focal = own + pointwise.focal_row * groups;
  if (pointwise.focal_pos != 0.0) numerator += pointwise.focal_pos * focal[0];
  if (pointwise.focal_neg != 0.0) numerator += pointwise.focal_neg * focal[groups];
  double divisor = pointwise.positives * (own[0] + own[2 * groups]) +
                   pointwise.negatives * (own[groups] + own[3 * groups]);
  if (pointwise.support != 0.0) divisor += pointwise.support * own[pointwise.support_row * groups];
  return {class_weight * numerator, class_weight * divisor};
}

// d(pointwise)/d(sums) of one group, given the two sums over all groups.  The gradient by the
// denominator is added to the first four rows; the rows of the numerator are overwritten.
CUSTOMLOSS_HD void add_pointwise_grad(const Pointwise& pointwise, const Lost& all,
                                      double class_weight, double* grads, int64_t groups,
                                      int64_t group) {
  double* own = grads + group;
  const double share = all.divisor != 0.0 ? class_weight / all.divisor : 0.0;
  // An infinite loss does not change with the denominator.  Infinity times the share would make a
  // NaN of every gradient by the input, which takes differences of these rows.
  const bool infinite = all.numerator > kMaxDouble;
  const double count = share == 0.0 || infinite ? 0.0 : -share * all.ratio();
  own[0] += pointwise.positives * count;
  own[groups] += pointwise.negatives * count;
  own[2 * groups] += pointwise.positives * count;
  own[3 * groups] += pointwise.negatives * count;
  if (pointwise.log_pos != 0.0) own[pointwise.log_row * groups] = pointwise.log_pos * share;
  if (pointwise.log_neg != 0.0) own[(pointwise.log_row + 1) * groups] = pointwise.log_neg * share;
  double* focal = own + pointwise.focal_row * groups;
  if (pointwise.focal_pos != 0.0) focal[0] = pointwise.focal_pos * share;
  if (pointwise.focal_neg != 0.0) focal[groups] = pointwise.focal_neg * share;
  if (pointwise.support != 0.0) {
    own[pointwise.support_row * groups] = pointwise.support * count;
  }
}

}  // namespace
}  // namespace customloss
