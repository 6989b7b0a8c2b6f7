// From the sums of every group to a loss, where these were made or changed elsewhere: compound
// losses, classes that do not all count alike, and the sums of several ranks.
//
//   loss = score_weight * reduction of average of score(sums) + pointwise     (score.h, average.h)
//
// One thread: a few numbers per group.
#include <tuple>
#include <vector>

#include "loss.h"

namespace customloss::cpu {
namespace {

std::tuple<Tensor, Tensor> sums_score(const Tensor& sums, const std::optional<Tensor>& class_weight,
                                      int64_t extra, bool per_sample, bool wide, double tp_weight,
                                      double fp_weight, double fn_weight, double smooth,
                                      double gamma, int64_t link, int64_t absent, int64_t average,
                                      int64_t reduction, double score_weight, double log_pos,
                                      double log_neg, double focal, double positives,
                                      double negatives) {
  const Scoring scoring =
      scoring_of(tp_weight, fp_weight, fn_weight, smooth, gamma, link, absent, average, reduction);
  const Pointwise pointwise = pointwise_of(static_cast<unsigned>(extra), score_weight, log_pos,
                                           log_neg, focal, positives, negatives);
  check_sums(sums, class_weight, static_cast<unsigned>(extra), per_sample, scoring, pointwise);
  const int64_t rows = sums.size(0), samples = sums.size(1), classes = sums.size(2);
  Tensor coefficients = empty({rows, samples, classes}, true, sums);
  Tensor loss = empty_loss(scoring, per_sample, true, samples, classes, wide, sums);
  const void* const weights = class_weight ? class_weight->const_data_ptr() : nullptr;
  std::vector<double> values(loss.numel());
  CompoundLoss(scoring, pointwise, rows, samples, classes, static_cast<const double*>(weights))
      .run(static_cast<const double*>(sums.const_data_ptr()),
           static_cast<double*>(coefficients.mutable_data_ptr()), values.data(), loss.numel());
  store(values, &loss);
  return {loss, coefficients};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(customloss, CPU, m) { m.impl("sums_score", TORCH_BOX(&sums_score)); }

}  // namespace customloss::cpu
