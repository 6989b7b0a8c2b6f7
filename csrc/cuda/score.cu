// From the sums of every group to a loss, where these were made or changed elsewhere: compound
// losses, classes that do not all count alike, and the sums of several ranks.
//
//   1  score_sums: all there is to do for up to kSlots groups
//   2  score_gradient, for more
//
// Nothing waits for the device, nothing is cleared, no float is added atomically: the same bits
// come out every time, and a call can be captured in a graph.
#include "../results.h"
#include "score.cuh"

namespace customloss::cuda {
namespace {

// Blocks of the second launch: each adds up the numbers of all slices, so that more would read
// more.
constexpr int64_t kMostBlocks = 512;

std::tuple<Tensor, Tensor> sums_score(const arguments::GroupSums& given,
                                      const arguments::Scoring& scoring,
                                      const arguments::Pointwise& pointwise) {
  const Stream stream(given.sums);
  check_sums(given, scoring, pointwise);
  const Tensor& sums = given.sums;
  const int64_t kinds = sums.size(0), samples = sums.size(1), classes = sums.size(2);
  Tensor coefficients = empty({kinds, samples, classes}, true, sums);
  Tensor loss = empty_loss(scoring, given);
  const int64_t groups = samples * classes;
  if (groups == 0) {
    torch::stable::zero_(loss);
    return {loss, coefficients};
  }
  Compound f{};
  plan_rows(scoring, samples, classes, kSlots, &f);
  loss_to(loss, &f);
  f.pointwise = pointwise.of(given.extra);
  f.sums = static_cast<const double*>(sums.const_data_ptr());
  if (given.class_weight) {
    f.class_weight = static_cast<const double*>(given.class_weight->const_data_ptr());
  }
  f.coefficients = static_cast<double*>(coefficients.mutable_data_ptr());
  f.groups = groups;
  f.kinds = static_cast<int>(kinds);
  if (f.slices == 1) {
    launch(score_sums, 1, kThreads, 0, stream, f);
    return {loss, coefficients};
  }
  const int64_t kept = f.segments == 1 ? f.rows : 0;
  Tensor workspace = empty({kNumbers * (f.slices + kept)}, true, sums);
  f.stats = static_cast<double*>(workspace.mutable_data_ptr());
  f.means = kept > 0 ? f.stats + kNumbers * f.slices : nullptr;
  launch(score_sums, f.slices, kThreads, 0, stream, f);
  launch(score_gradient, std::min(f.slices, kMostBlocks), kThreads, 0, stream, f);
  return {loss, coefficients};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(customloss, CUDA, m) { m.impl("sums_score", Boxed<&sums_score>::call); }

}  // namespace customloss::cuda
