// From the sums of every group to a loss, where these were made or changed elsewhere: compound
// losses, classes that do not all count alike, and the sums of several ranks.
//
//   1  score_sums: all there is to do for up to kSlots groups
//   2  score_gradient, for more
//
// Nothing waits for the device, nothing is cleared, no float is added atomically: the same bits
// come out every time, and a call can be captured in a graph.
#include "score.cuh"

namespace customloss::cuda {
namespace {

// Blocks of the second launch: each adds up the numbers of all slices, so that more would read
// more.
constexpr int64_t kMostBlocks = 512;

std::tuple<Tensor, Tensor> sums_score(const Tensor& sums, const std::optional<Tensor>& class_weight,
                                      int64_t extra, bool per_sample, bool wide, double tp_weight,
                                      double fp_weight, double fn_weight, double smooth,
                                      double gamma, int64_t link, int64_t absent, int64_t average,
                                      int64_t reduction, double score_weight, double log_pos,
                                      double log_neg, double focal, double positives,
                                      double negatives) {
  const Stream stream(sums);
  const Scoring scoring =
      scoring_of(tp_weight, fp_weight, fn_weight, smooth, gamma, link, absent, average, reduction);
  const Pointwise pointwise = pointwise_of(static_cast<unsigned>(extra), score_weight, log_pos,
                                           log_neg, focal, positives, negatives);
  check_sums(sums, class_weight, static_cast<unsigned>(extra), per_sample, scoring, pointwise);
  const int64_t kinds = sums.size(0), samples = sums.size(1), classes = sums.size(2);
  Tensor coefficients = empty({kinds, samples, classes}, true, sums);
  Tensor loss = empty_loss(scoring, per_sample, true, samples, classes, wide, sums);
  const int64_t groups = samples * classes;
  if (groups == 0) {
    torch::stable::zero_(loss);
    return {loss, coefficients};
  }
  Compound f{};
  plan_rows(scoring, samples, classes, kSlots, &f);
  loss_to(loss, &f);
  f.pointwise = pointwise;
  f.sums = static_cast<const double*>(sums.const_data_ptr());
  if (class_weight) f.class_weight = static_cast<const double*>(class_weight->const_data_ptr());
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

STABLE_TORCH_LIBRARY_IMPL(customloss, CUDA, m) { m.impl("sums_score", TORCH_BOX(&sums_score)); }

}  // namespace customloss::cuda
