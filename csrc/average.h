// From the sums of every group to the loss and its gradient by those sums, on the host.
//
// Two levels: over the classes of a sample (`average`), then over what is left (`reduction`).
// Groups that `absent` skips count in neither, nor in a denominator; a mean over nothing is 0.
#pragma once

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
  // sums: [4, samples, classes], replaced by dL/dsums; loss: as many values as are left.
  GroupAverage(const Scoring& scoring, int64_t samples, int64_t classes, double* sums)
      : scoring_(scoring), samples_(samples), classes_(classes), sums_(sums) {}

  void run(double* loss) const {
    const bool per_class = scoring_.average == Average::kNone;
    const int64_t rows = per_class ? samples_ * classes_ : samples_;
    const int64_t width = per_class ? 1 : classes_;
    double total = 0.0;
    int64_t counted = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const Mean mean = mean_of(row * width, width);
      if (scoring_.reduction == Reduction::kNone) loss[row] = mean.value;
      total += mean.value;
      counted += mean.weight != 0.0;
    }
    double outer = 1.0;
    if (scoring_.reduction == Reduction::kMean)
      outer = counted ? 1.0 / static_cast<double>(counted) : 0.0;
    if (scoring_.reduction != Reduction::kNone) *loss = outer * total;
    for (int64_t row = 0; row < rows; ++row) grads_of(row * width, width, outer);
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

  Mean mean_of(int64_t first, int64_t width) const {
    Mean mean{0.0, 0.0};
    for (int64_t group = first; group < first + width; ++group) {
      const GroupLoss loss = group_loss(scoring_.score, at(group));
      const double weight = group_weight(scoring_.average, loss);
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
      const Sums grad = averaged_grad(scoring_.average, loss, mean.value, mean.weight, outer);
      sums_[group] = grad.tp;
      sums_[groups + group] = grad.fp;
      sums_[2 * groups + group] = grad.fn;
      sums_[3 * groups + group] = grad.tn;
    }
  }

  const Scoring scoring_;
  const int64_t samples_, classes_;
  double* const sums_;
};

}  // namespace customloss
