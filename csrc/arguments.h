// The arguments of the operators, and what is checked of them.
//
// A group is a struct whose constructor takes its members from the stack, one by one and in the
// order of the schemas. The groups of customloss/_spec/arguments.py have the same names and fields
// in the same order; tests/ops/test_arguments.py compares them. Checks here are invariants; what a
// user can get wrong is checked in Python, where the error can name the argument.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "average.h"
#include "element.h"
#include "layout.h"
#include "pixel.h"
#include "torch.h"

namespace customloss {
namespace arguments {

// The tensors that a pass reads.
struct Data {
  Tensor input, target;
  std::optional<Tensor> weight;

  explicit Data(Stack& in)
      : input(in.take<Tensor>()),
        target(in.take<Tensor>()),
        weight(in.take<std::optional<Tensor>>()) {}
};

// How an element becomes a probability, how elements are grouped, and what is added up.
struct Elements {
  Activation activation;
  double scale, offset;
  bool per_sample, per_class;
  std::optional<std::vector<int64_t>> ignore_index;
  double label_smoothing;
  unsigned extra;  // bits of Extra
  double focal_gamma;
  bool focal_split;
  std::optional<double> log_smoothing;
  OutOfRange out_of_range;
  NanTargets nan_targets;

  explicit Elements(Stack& in)
      : activation(in.take<Activation>()),
        scale(in.take<double>()),
        offset(in.take<double>()),
        per_sample(in.take<bool>()),
        per_class(in.take<bool>()),
        ignore_index(in.take<std::optional<std::vector<int64_t>>>()),
        label_smoothing(in.take<double>()),
        extra(in.take<unsigned>()),
        focal_gamma(in.take<double>()),
        focal_split(in.take<bool>()),
        log_smoothing(in.take<std::optional<double>>()),
        out_of_range(in.take<OutOfRange>()),
        nan_targets(in.take<NanTargets>()) {}
};

// How the sums of the groups become a loss.
struct Scoring : customloss::Scoring {
  explicit Scoring(Stack& in)
      : customloss::Scoring{.score = {.tp_weight = in.take<double>(),
                                      .fp_weight = in.take<double>(),
                                      .fn_weight = in.take<double>(),
                                      .smooth = in.take<double>(),
                                      .smooth_denominator = in.take<double>(),
                                      .gamma = in.take<double>(),
                                      .log_floor = in.take<double>(),
                                      .link = in.take<Link>(),
                                      .absent = in.take<Absent>()},
                            .average = in.take<Average>(),
                            .reduction = in.take<Reduction>()} {}
};

// What stands beside the score.
struct Pointwise : Factors {
  explicit Pointwise(Stack& in)
      : Factors{.score_weight = in.take<double>(),
                .log_pos = in.take<double>(),
                .log_neg = in.take<double>(),
                .focal_pos = in.take<double>(),
                .focal_neg = in.take<double>(),
                .positives = in.take<double>(),
                .negatives = in.take<double>(),
                .support = in.take<double>()} {}

  // As a loss of the sums of `extra`.
  customloss::Pointwise of(unsigned extra) const {
    return {*this, row_of(extra, kLogLoss), row_of(extra, kFocal), row_of(extra, kSupport)};
  }
};

// What the gradient of a pass starts from.
struct Incoming {
  std::optional<Tensor> grad;  // by the loss
  Tensor coefficients;         // the gradient of the loss by the sums

  explicit Incoming(Stack& in)
      : grad(in.take<std::optional<Tensor>>()), coefficients(in.take<Tensor>()) {}
};

// The operand by which a gradient is taken.
struct Wrt {
  customloss::Wrt wrt;

  explicit Wrt(Stack& in) : wrt(in.take<customloss::Wrt>()) {}
};

// Sums that were made before.
struct GroupSums {
  Tensor sums;
  std::optional<Tensor> class_weight;
  unsigned extra;  // bits of Extra
  bool per_sample;
  bool wide;  // the loss is float64

  explicit GroupSums(Stack& in)
      : sums(in.take<Tensor>()),
        class_weight(in.take<std::optional<Tensor>>()),
        extra(in.take<unsigned>()),
        per_sample(in.take<bool>()),
        wide(in.take<bool>()) {}
};

}  // namespace arguments

// What one pass reads, and how.
struct Reading : arguments::Data, arguments::Elements {
  // The target holds class numbers: one class where the input has several.
  bool labels() const { return input.dim() > 1 && input.size(1) > 1 && target.size(1) == 1; }

  // Whether a class number that is neither a class nor ignored is an error.
  bool refuses() const { return labels() && out_of_range == OutOfRange::kRaise; }

  // Values of targets that do not count.
  Ignored ignored() const {
    Ignored result;
    if (!ignore_index || ignore_index->empty()) return result;
    STD_TORCH_CHECK(ignore_index->size() <= kMostIgnored, "customloss: too many ignored values");
    result.count = static_cast<int>(ignore_index->size());
    for (int k = 0; k < kMostIgnored; ++k) {
      result.values[k] = (*ignore_index)[k < result.count ? k : 0];
    }
    return result;
  }

  // Whether elements whose target is NaN do not count.
  bool ignores_nan() const {
    return nan_targets == NanTargets::kIgnore && !labels() && dtype_of(target) >= Dtype::kFloat16;
  }

  // Whether the classes of a pixel are read together (pixel.h) rather than each element by itself.
  bool by_pixel() const {
    return activation == Activation::kSoftmax || labels() || ignore_index || label_smoothing != 0 ||
           extra != 0 || ignores_nan();
  }

  // A smoothed target is (1-e) t + e/K.
  Smoothing<double> smoothing() const {
    const bool choice = labels() || activation == Activation::kSoftmax;
    const double outcomes = static_cast<double>(choice ? input.size(1) : 2);
    const double off = label_smoothing / outcomes;
    const double log = log_smoothing.value_or(label_smoothing), log_off = log / outcomes;
    return {1.0 - label_smoothing + off, off, 1.0 - log + log_off, log_off};
  }

  // The kernels trust the shapes from here on.
  void check() const {
    STD_TORCH_CHECK(dtype_of(input) >= Dtype::kFloat16, "customloss: input must be floating");
    STD_TORCH_CHECK(extra <= kEveryExtra, "customloss: unknown sums");
    const int64_t rank = input.dim();
    STD_TORCH_CHECK(rank > 0 && rank <= 64 && target.dim() == rank,
                    "customloss: target must have the shape of input");
    for (int64_t dim = 0; dim < rank; ++dim) {
      STD_TORCH_CHECK(target.size(dim) == input.size(dim) || (dim == 1 && labels()),
                      "customloss: target must have the shape of input");
    }
    STD_TORCH_CHECK(!labels() || is_class_number(dtype_of(target)),
                    "customloss: class numbers are uint8, int8, int16, int32 or int64");
    STD_TORCH_CHECK(same_device(target, input), "customloss: target must be on input's device");
    if (!weight) return;
    STD_TORCH_CHECK(same_device(*weight, input), "customloss: weight must be on input's device");
    const int64_t missing = rank - weight->dim();
    STD_TORCH_CHECK(missing >= 0, "customloss: weight must broadcast to input");
    for (int64_t dim = missing; dim < rank; ++dim) {
      const int64_t own = weight->size(dim - missing);
      STD_TORCH_CHECK(own == 1 || own == input.size(dim),
                      "customloss: weight must broadcast to input");
    }
  }

  // `out` is the gradient that is written, null in the forward pass.
  Layout layout(const Tensor* out = nullptr) const {
    check();
    Layout layout;
    const bool fits =
        make_layout({strided(input), strided(target), weight ? strided(*weight) : Strided{},
                     out ? strided(*out) : Strided{}},
                    per_sample, per_class || by_pixel(), &layout);
    STD_TORCH_CHECK(fits, "customloss: more than ", kMaxReduced,
                    " dimensions that cannot be merged");
    return layout;
  }
};

// The incoming gradient, reached from (sample, class): stride 0 where the loss was reduced.
struct OuterGrad {
  const void* data = nullptr;  // null means 1
  bool is_double = false;
  int64_t sample_stride = 0, class_stride = 0;

  CUSTOMLOSS_HD double at(int64_t sample, int64_t cls) const {
    if (data == nullptr) return 1.0;
    const int64_t offset = sample * sample_stride + cls * class_stride;
    return is_double ? static_cast<const double*>(data)[offset]
                     : static_cast<double>(static_cast<const float*>(data)[offset]);
  }
};

inline OuterGrad outer_grad(const arguments::Incoming& incoming, const Reading& reading,
                            const Layout& layout) {
  const auto& [grad, coefficients] = incoming;
  const bool per_sample = reading.per_sample;
  const int64_t samples = layout.sample.size, classes = reading.per_class ? layout.cls.size : 1;
  STD_TORCH_CHECK(coefficients.scalar_type() == ScalarType::Double &&
                      coefficients.is_contiguous() &&
                      coefficients.numel() == rows_of(reading.extra) * samples * classes,
                  "customloss: coefficients must be contiguous float64 [rows, samples, classes]");
  STD_TORCH_CHECK(same_device(coefficients, reading.input),
                  "customloss: coefficients must be on input's device");
  OuterGrad outer;
  if (!grad) return outer;
  STD_TORCH_CHECK(same_device(*grad, reading.input), "customloss: grad must be on input's device");
  const int64_t values = grad->dim() == 2   ? samples * classes
                         : grad->dim() == 0 ? 1
                         : per_sample       ? samples
                                            : classes;
  STD_TORCH_CHECK(grad->dim() <= 2 && grad->numel() == values,
                  "customloss: grad must have the shape of the loss");
  outer.data = grad->const_data_ptr();
  outer.is_double = grad->scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(outer.is_double || grad->scalar_type() == ScalarType::Float,
                  "customloss: the gradient of a loss is float32 or float64");
  const int64_t rank = grad->dim();
  if (rank == 2) {
    outer.sample_stride = grad->stride(0);
    outer.class_stride = grad->stride(1);
  } else if (rank == 1) {
    (per_sample ? outer.sample_stride : outer.class_stride) = grad->stride(0);
  }
  return outer;
}

// What `sums_score` trusts of its arguments.
inline void check_sums(const arguments::GroupSums& given, const Scoring& scoring,
                       const Factors& pointwise) {
  const auto& [sums, class_weight, extra, per_sample, wide] = given;
  STD_TORCH_CHECK((pointwise.log_pos == 0.0 && pointwise.log_neg == 0.0) || (extra & kLogLoss) != 0,
                  "customloss: a cross-entropy needs the sums of the log-loss");
  STD_TORCH_CHECK(
      (pointwise.focal_pos == 0.0 && pointwise.focal_neg == 0.0) || (extra & kFocal) != 0,
      "customloss: a focal loss needs its sums");
  STD_TORCH_CHECK(pointwise.support == 0.0 || (extra & kSupport) != 0,
                  "customloss: a loss that is divided by the support needs its sums");
  STD_TORCH_CHECK(extra <= kEveryExtra, "customloss: unknown sums");
  STD_TORCH_CHECK(sums.dim() == 3 && sums.size(0) == rows_of(extra) && sums.is_contiguous() &&
                      sums.scalar_type() == ScalarType::Double,
                  "customloss: sums must be contiguous float64 [rows, samples, classes]");
  STD_TORCH_CHECK(per_sample || sums.size(1) <= 1, "customloss: sums of samples, not per sample");
  const bool single = class_weight || pointwise.present();
  STD_TORCH_CHECK(!single || scoring.average != Average::kNone,
                  "customloss: losses of classes that are kept have no weights");
  if (!class_weight) return;
  STD_TORCH_CHECK(class_weight->dim() == 2 && class_weight->size(0) == 2 &&
                      class_weight->size(1) == sums.size(2) && class_weight->is_contiguous() &&
                      class_weight->scalar_type() == ScalarType::Double,
                  "customloss: weights of classes must be contiguous float64 [2, classes]");
  STD_TORCH_CHECK(same_device(*class_weight, sums),
                  "customloss: weights of classes must be on the device of the sums");
}

}  // namespace customloss
