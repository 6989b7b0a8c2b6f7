// From the sums of every group to a loss, where these were made or changed elsewhere: compound
// losses, classes that do not all count alike, and the sums of several ranks.
//
//   loss = score_weight * reduction of average of score(sums) + pointwise     (score.h, average.h)
//
// One thread: a few numbers per group.
#include <tuple>
#include <vector>

#include "../results.h"
#include "loss.h"

namespace customloss::cpu {
namespace {

std::tuple<Tensor, Tensor> sums_score(const arguments::GroupSums& given,
                                      const arguments::Scoring& scoring,
                                      const arguments::Pointwise& pointwise) {
  check_sums(given, scoring, pointwise);
  const Tensor& sums = given.sums;
  const int64_t rows = sums.size(0), samples = sums.size(1), classes = sums.size(2);
  Tensor coefficients = empty({rows, samples, classes}, true, sums);
  Tensor loss = empty_loss(scoring, given);
  const auto& class_weight = given.class_weight;
  const void* const weights = class_weight ? class_weight->const_data_ptr() : nullptr;
  std::vector<double> values(loss.numel());
  CompoundLoss(scoring, pointwise.of(given.extra), rows, samples, classes,
               static_cast<const double*>(weights))
      .run(static_cast<const double*>(sums.const_data_ptr()),
           static_cast<double*>(coefficients.mutable_data_ptr()), values.data(), loss.numel());
  store(values, &loss);
  return {loss, coefficients};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(customloss, CPU, m) { m.impl("sums_score", Boxed<&sums_score>::call); }

}  // namespace customloss::cpu
