// From the sums of every group to the loss and its gradient by those sums, on the host.  The device
// twins are cuda/finish.cuh and cuda/score.cuh.
//
// There are two levels: `average` is over the classes of a sample, `reduction` over what that
// leaves.  A group that `absent` skips enters neither the numerator nor the denominator of a mean;
// a mean over nothing is 0.  A compound loss adds a pointwise loss, of all groups or of each
// sample's groups.
#pragma once

#include <algorithm>

#include "score.h"

namespace customloss {

// How groups become a loss, as `confusion_score` receives it.
struct Scoring {
  Score score;
  Average average;
  Reduction reduction;
};

class GroupAverage {
 public:
  // sums: [4, samples, classes], replaced by dL/dsums.  class_weight: [classes], the weight of each
  // class in the average over the classes of a sample; null if all weigh the same.
  GroupAverage(const Scoring& scoring, int64_t samples, int64_t classes, double* sums,
               const double* class_weight = nullptr)
      : scoring_(scoring),
        samples_(samples),
        classes_(classes),
        sums_(sums),
        class_weight_(class_weight) {}

  // Writes `scale` times the loss, as many values as the reduction leaves, and its gradient.
  void run(double* loss, double scale = 1.0) const {
    const bool per_class = scoring_.average == Average::kNone;
    const int64_t rows = per_class ? samples_ * classes_ : samples_;
    const int64_t width = per_class ? 1 : classes_;
    double total = 0.0;
    int64_t counted = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const Mean mean = mean_of(row * width, width);
      if (scoring_.reduction == Reduction::kNone) loss[row] = scale * mean.value;
      total += mean.value;
      counted += mean.weight != 0.0;
    }
    double outer = 1.0;
    if (scoring_.reduction == Reduction::kMean)
      outer = counted ? 1.0 / static_cast<double>(counted) : 0.0;
    if (scoring_.reduction != Reduction::kNone) *loss = scale * outer * total;
    for (int64_t row = 0; row < rows; ++row) grads_of(row * width, width, scale * outer);
  }

 private:
  struct Mean {
    double value, weight;
  };

  Sums at(int64_t group) const {
    const int64_t groups = samples_ * classes_;
    return {sums_[group], sums_[groups + group], sums_[2 * groups + group],
            sums_[3 * groups + group]};
  }

  double class_weight(int64_t group) const {
    return class_weight_ == nullptr ? 1.0 : class_weight_[group % classes_];
  }

  Mean mean_of(int64_t first, int64_t width) const {
    Mean mean{0.0, 0.0};
    for (int64_t group = first; group < first + width; ++group) {
      const GroupLoss loss = group_loss(scoring_.score, at(group));
      const double weight = group_weight(scoring_.average, loss, class_weight(group));
      if (weight == 0.0) continue;
      mean.value += weight * loss.value;
      mean.weight += weight;
    }
    if (mean.weight != 0.0) mean.value /= mean.weight;
    return mean;
  }

  void grads_of(int64_t first, int64_t width, double outer) const {
    const int64_t groups = samples_ * classes_;
    const Mean mean = mean_of(first, width);
    for (int64_t group = first; group < first + width; ++group) {
      const GroupLoss loss = group_loss(scoring_.score, at(group));
      const Sums grad = averaged_grad(scoring_.average, loss, class_weight(group), mean.value,
                                      mean.weight, outer);
      sums_[group] = grad.tp;
      sums_[groups + group] = grad.fp;
      sums_[2 * groups + group] = grad.fn;
      sums_[3 * groups + group] = grad.tn;
    }
  }

  const Scoring scoring_;
  const int64_t samples_, classes_;
  double* const sums_;
  const double* const class_weight_;
};

// A compound loss: score_weight times the average of the groups, plus a pointwise loss.
class CompoundLoss {
 public:
  // run() reads sums and writes grads, both [rows, samples, classes].  class_weight: [2, classes],
  // for the average and for the pointwise loss; null if all classes weigh the same.
  CompoundLoss(const Scoring& scoring, const Pointwise& pointwise, int64_t rows, int64_t samples,
               int64_t classes, const double* class_weight)
      : scoring_(scoring),
        pointwise_(pointwise),
        rows_(rows),
        samples_(samples),
        classes_(classes),
        class_weight_(class_weight) {}

  void run(const double* sums, double* grads, double* loss, int64_t losses) const {
    const int64_t groups = samples_ * classes_;
    std::copy_n(sums, 4 * groups, grads);
    std::fill_n(grads + 4 * groups, (rows_ - 4) * groups, 0.0);
    if (pointwise_.score_weight != 0.0) {
      const GroupAverage average(scoring_, samples_, classes_, grads, class_weight_);
      average.run(loss, pointwise_.score_weight);
    } else {
      std::fill_n(grads, 4 * groups, 0.0);
      std::fill_n(loss, losses, 0.0);
    }
    if (!pointwise_.present()) return;
    const int64_t width = scoring_.reduction == Reduction::kNone ? classes_ : groups;
    for (int64_t part = 0; part * width < groups; ++part) {
      loss[part] += add_pointwise(part * width, width, sums, grads);
    }
  }

 private:
  // Returns the pointwise loss of `width` groups from `first` on; puts its gradient into `grads`.
  double add_pointwise(int64_t first, int64_t width, const double* sums, double* grads) const {
    const int64_t groups = samples_ * classes_;
    double numerator = 0.0, divisor = 0.0;
    for (int64_t group = first; group < first + width; ++group) {
      const Lost one = group_lost(pointwise_, sums, groups, group, class_weight(group));
      numerator += one.numerator;
      divisor += one.divisor;
    }
    const Lost all = whole_lost(pointwise_, numerator, divisor);
    for (int64_t group = first; group < first + width; ++group) {
      add_pointwise_grad(pointwise_, all, class_weight(group), grads, groups, group);
    }
    return all.ratio();
  }

  double class_weight(int64_t group) const {
    return class_weight_ == nullptr ? 1.0 : class_weight_[classes_ + group % classes_];
  }

  const Scoring scoring_;
  const Pointwise pointwise_;
  const int64_t rows_, samples_, classes_;
  const double* const class_weight_;
};

}  // namespace customloss
