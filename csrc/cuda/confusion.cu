// The soft confusion sums and their gradient on CUDA devices: the operators.
//
//   sums[tp, fp, fn, tn][sample][class] = sum of w t p, w (1-t) p, w t q, w (1-t) q
//   dL/dx = w dp/dx [ t (g_tp - g_fn) + (1-t) (g_fp - g_tn) ]
//
// forward   1  planar_sums or column_sums: partial sums of fixed pieces (forward.cuh)
//           2  combine_sums, or finish_sums: on to the loss and its gradient by the sums
//              (finish.cuh); a third, small launch where more than kAtOnce groups are averaged
//              with weights that only the data tell (absent="skip", average="weighted")
// backward  1  planar_gradient or column_gradient (backward.cuh)
//
// Where the classes of a pixel are read together, the first launches are those of pixel.cu.
//
// Nothing waits for the device, nothing is cleared, no float is added atomically: the same bits
// come out every time, and a call can be captured in a graph.
#include <utility>

#include "../results.h"
#include "backward.cuh"
#include "finish.cuh"
#include "pixel.h"
#include "plan.h"

namespace customloss::cuda {

bool customloss_cuda_wide_index = false;

namespace {

// Groups up to which the last block writes all coefficients rather than another launch.
constexpr int64_t kAtOnce = 1024;

// Calls body<Io>() with the loader of the operands.
template <class In, class Body>
void with_target(Dtype target, const Body& body) {
  switch (target) {
    case Dtype::kBool: return body.template operator()<Direct<In, bool>>();
    case Dtype::kInt64: return body.template operator()<Direct<In, int64_t>>();
    default: break;
  }
  if constexpr (!std::is_same_v<In, double>) {
    if (target == Dtype::kUInt8) return body.template operator()<Direct<In, uint8_t>>();
    if (target == Dtype::kFloat32) return body.template operator()<Direct<In, float>>();
  }
  if constexpr (!std::is_same_v<In, float>) return body.template operator()<Direct<In, In>>();
}

template <class Body>
void with_any(const Pass& pass, const Body& body) {
  if (pass.dtype[kInputOperand] == Dtype::kFloat64) return body.template operator()<Any<double>>();
  return body.template operator()<Any<float>>();
}

template <class Body>
void with_io(const Work& work, const Body& body) {
  if (!work.direct) return with_any(work.pass, body);
  const Dtype target = work.pass.dtype[kTargetOperand];
  switch (work.pass.dtype[kInputOperand]) {
    case Dtype::kFloat16: return with_target<Half>(target, body);
    case Dtype::kBFloat16: return with_target<BFloat16>(target, body);
    case Dtype::kFloat32: return with_target<float>(target, body);
    default: return with_target<double>(target, body);
  }
}

// ---- forward ----------------------------------------------------------------------------

template <class Io, bool kWeighted>
void launch_sums(const Work& work, const Partials& partials, const Stream& stream) {
  if (work.by_columns) {
    launch(column_sums<Io, kWeighted>, work.columns.blocks(), kThreads, 0, stream, work.pass,
           work.columns, partials);
  } else {
    launch(planar_sums<Io, kWeighted>, work.planar.blocks(), kThreads, 0, stream, work.pass,
           work.planar, partials);
  }
}

// Leaves partial sums in `workspace`, or the sums themselves in `sums` where a group is a unit.
Combination partial_sums(const Work& work, int64_t groups, double* workspace, double* sums,
                         unsigned* ticket, const Stream& stream) {
  Combination c{};
  c.sums = sums;
  c.groups = groups;
  c.units = work.units();
  c.partials = c.units > 1 ? workspace : nullptr;
  c.unit_stride = work.by_columns ? 4 * groups : 1;
  c.sum_stride = work.by_columns ? groups : groups * c.units;
  c.group_stride = work.by_columns ? 1 : c.units;
  c.helpers = static_cast<int>(power_of_two(c.units, work.by_columns ? 8 : kThreads));
  const Partials partials{c.units > 1 ? workspace : sums, c.sum_stride, ticket};
  with_io(work, [&]<class Io>() {
    work.pass.data[kWeightOperand] != nullptr ? launch_sums<Io, true>(work, partials, stream)
                                              : launch_sums<Io, false>(work, partials, stream);
  });
  return c;
}

Combination partial_sums(const PixelWork& work, int64_t groups, double* workspace, double* sums,
                         unsigned* ticket, const Stream& stream) {
  Combination c{};
  c.sums = sums;
  c.groups = groups;
  c.units = work.parts();
  c.partials = c.units > 1 ? workspace : nullptr;
  c.unit_stride = 1;
  c.sum_stride = groups * c.units;
  c.group_stride = c.units;
  c.helpers = static_cast<int>(power_of_two(c.units, kThreads));
  pixel_partial_sums(work, workspace, sums, ticket, stream);
  return c;
}

int64_t partials_size(const Work& work, int64_t groups) {
  return work.units() > 1 ? 4 * groups * work.units() : 0;
}

Tensor confusion(arguments::Data&& data, const arguments::Elements& elements) {
  const Reading reading{std::move(data), elements};
  const Stream stream(reading.input);
  if (reading.by_pixel()) return pixel_confusion(reading, stream);
  const Layout layout = reading.layout();
  Tensor sums = empty({4, layout.sample.size, layout.cls.size}, true, reading.input);
  const int64_t groups = layout.groups();
  if (groups == 0) return sums;
  const Work work = plan(reading, layout, nullptr, true);
  Tensor workspace = empty({partials_size(work, groups)}, true, reading.input);
  const Combination c =
      partial_sums(work, groups, static_cast<double*>(workspace.mutable_data_ptr()),
                   static_cast<double*>(sums.mutable_data_ptr()), nullptr, stream);
  if (c.partials != nullptr) {
    launch(combine_sums, ceil_div(groups, kThreads / c.helpers), kThreads, 0, stream, c);
  }
  return sums;
}

Finish plan_finish(const Scoring& scoring, int64_t samples, int64_t classes, int helpers) {
  Finish f{};
  plan_rows(scoring, samples, classes, kThreads / helpers, &f);
  f.known = scoring.average != Average::kWeighted && scoring.score.absent != Absent::kSkip;
  f.at_once = !f.known && samples * classes <= kAtOnce;
  return f;
}

std::tuple<Tensor, Tensor> confusion_score(arguments::Data&& data,
                                           const arguments::Elements& elements,
                                           const arguments::Scoring& scoring) {
  const Reading reading{std::move(data), elements};
  const Stream stream(reading.input);
  STD_TORCH_CHECK(reading.extra == 0, "customloss: a score is of four sums");
  const Layout layout = reading.layout();
  const int64_t samples = layout.sample.size, classes = reading.per_class ? layout.cls.size : 1;
  const int64_t groups = samples * classes;
  Tensor coefficients = empty({4, samples, classes}, true, reading.input);
  Tensor loss = empty_loss(scoring, reading, layout);
  if (layout.groups() == 0) {
    torch::stable::zero_(loss);
    torch::stable::zero_(coefficients);
    return {loss, coefficients};
  }
  const bool by_pixel = reading.by_pixel();
  const Work work = by_pixel ? Work{} : plan(reading, layout, nullptr, true);
  const PixelWork pixels =
      by_pixel ? plan_pixels(reading, layout, nullptr, Wrt::kInput) : PixelWork{};
  const int64_t partials = by_pixel ? pixel_workspace(pixels) : partials_size(work, groups);
  // helpers are settled by the pass; one slice per group is the most there can be
  Tensor workspace = empty({partials + 4 * groups + 2}, true, reading.input);
  double* free = static_cast<double*>(workspace.mutable_data_ptr());
  unsigned* ticket = reinterpret_cast<unsigned*>(free + partials + 4 * groups + 1);
  double* const sums = static_cast<double*>(coefficients.mutable_data_ptr());
  const Combination c = by_pixel ? partial_sums(pixels, groups, free, sums, ticket, stream)
                                 : partial_sums(work, groups, free, sums, ticket, stream);
  Finish f = plan_finish(scoring, samples, classes, c.helpers);
  f.combination = c;
  f.stats = free + partials;
  f.means = f.stats + 2 * groups;
  f.outer = f.means + 2 * groups;
  f.ticket = ticket;
  loss_to(loss, &f);
  launch(finish_sums, f.slices, kThreads, 0, stream, f);
  if (!f.known && !f.at_once) {
    launch(finish_coefficients, ceil_div(groups, kThreads), kThreads, 0, stream, f);
  }
  return {loss, coefficients};
}

// ---- backward ---------------------------------------------------------------------------

template <class Io, Wrt kWrt, bool kWeighted>
void launch_gradient(const Work& work, const GroupGrads& grads, const Stream& stream) {
  if (work.by_columns) {
    launch(column_gradient<Io, kWrt, kWeighted>, work.columns.blocks(), kThreads, 0, stream,
           work.pass, work.columns, grads);
  } else {
    launch(planar_gradient<Io, kWrt, kWeighted>, work.planar.blocks(), kThreads, 0, stream,
           work.pass, work.planar, grads);
  }
}

template <class Io, Wrt kWrt>
void launch_gradient(const Work& work, const GroupGrads& grads, const Stream& stream) {
  work.pass.data[kWeightOperand] != nullptr ? launch_gradient<Io, kWrt, true>(work, grads, stream)
                                            : launch_gradient<Io, kWrt, false>(work, grads, stream);
}

Tensor confusion_backward(const arguments::Incoming& incoming, arguments::Data&& data,
                          const arguments::Wrt& by, const arguments::Elements& elements) {
  const Reading reading{std::move(data), elements};
  const Stream stream(reading.input);
  const Wrt operand = by.wrt;
  if (reading.by_pixel()) return pixel_backward(incoming, reading, operand, stream);
  Tensor out = empty_gradient(reading, operand);
  if (out.numel() == 0) return out;
  const Layout layout = reading.layout(&out);
  const GroupGrads grads{static_cast<const double*>(incoming.coefficients.const_data_ptr()),
                         outer_grad(incoming, reading, layout), layout.groups(), layout.cls.size};
  const Work work = plan(reading, layout, &out, operand == Wrt::kInput);
  if (operand == Wrt::kInput) {
    with_io(work, [&]<class Io>() { launch_gradient<Io, Wrt::kInput>(work, grads, stream); });
  } else {
    with_any(work.pass, [&]<class Io>() {
      operand == Wrt::kTarget ? launch_gradient<Io, Wrt::kTarget>(work, grads, stream)
                              : launch_gradient<Io, Wrt::kWeight>(work, grads, stream);
    });
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(customloss, CUDA, m) {
  m.impl("confusion", Boxed<&confusion>::call);
  m.impl("confusion_score", Boxed<&confusion_score>::call);
  m.impl("confusion_backward", Boxed<&confusion_backward>::call);
}

}  // namespace customloss::cuda
