// The LibTorch stable ABI as the kernels use it: tensors in, dtypes, allocation, checks.
// The only file that knows torch's headers.  Checks here are invariants; what a user can get
// wrong is checked in Python, where the error can name the argument.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>

#include "average.h"
#include "dtype.h"
#include "element.h"
#include "layout.h"
#include "pixel.h"

namespace customloss {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Bool: return Dtype::kBool;
    case ScalarType::Byte: return Dtype::kUInt8;
    case ScalarType::Char: return Dtype::kInt8;
    case ScalarType::UInt16: return Dtype::kUInt16;
    case ScalarType::Short: return Dtype::kInt16;
    case ScalarType::UInt32: return Dtype::kUInt32;
    case ScalarType::Int: return Dtype::kInt32;
    case ScalarType::UInt64: return Dtype::kUInt64;
    case ScalarType::Long: return Dtype::kInt64;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    default: STD_TORCH_CHECK(false, "customloss: dtype without a kernel");
  }
}

// An uninitialised contiguous float32 or float64 tensor on the device of `like`.
inline Tensor empty(std::initializer_list<int64_t> sizes, bool is_double, const Tensor& like) {
  std::array<int64_t, 4> strides;
  int64_t next = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = next;
    next *= std::max<int64_t>(1, sizes.begin()[i]);  // as torch has them
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
                               is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
                               device_type, device_index, &handle));
  return Tensor(handle);
}

inline Strided strided(const Tensor& tensor) {
  return {tensor.sizes().data(), tensor.strides().data(), static_cast<int>(tensor.dim())};
}

// What one pass reads, as the ops receive it.
struct Elements {
  const Tensor& input;
  const Tensor& target;
  const std::optional<Tensor>& weight;
  Activation activation;
  double scale, offset;
  bool per_sample, per_class;
  std::optional<int64_t> ignore_index;
  double label_smoothing;
  unsigned extra;  // bits of Extra
  double focal_gamma;

  // The target holds class numbers: one class where the input has several.
  bool labels() const { return input.dim() > 1 && input.size(1) > 1 && target.size(1) == 1; }

  // Whether the classes of a pixel are read together (pixel.h) rather than each element by itself.
  bool by_pixel() const {
    return activation == Activation::kSoftmax || labels() || ignore_index || label_smoothing != 0 ||
           extra != 0;
  }

  // The t of a hard target, smoothed: (1-e) t + e/K.
  double smoothing() const {
    const bool choice = labels() || activation == Activation::kSoftmax;
    return label_smoothing / static_cast<double>(choice ? input.size(1) : 2);
  }

  // The kernels trust the shapes from here on.
  void check() const {
    STD_TORCH_CHECK(dtype_of(input) >= Dtype::kFloat16, "customloss: input must be floating");
    STD_TORCH_CHECK(activation >= Activation::kSigmoid && activation <= Activation::kSoftmax,
                    "customloss: unknown activation");
    STD_TORCH_CHECK(extra <= kEveryExtra, "customloss: unknown sums");
    const int64_t rank = input.dim();
    STD_TORCH_CHECK(rank > 0 && rank <= 64 && target.dim() == rank,
                    "customloss: target must have the shape of input");
    for (int64_t dim = 0; dim < rank; ++dim) {
      STD_TORCH_CHECK(target.size(dim) == input.size(dim) || (dim == 1 && labels()),
                      "customloss: target must have the shape of input");
    }
    STD_TORCH_CHECK(!labels() || dtype_of(target) < Dtype::kFloat16,
                    "customloss: class numbers are integers");
    if (!weight) return;
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

// The arguments that every pass has, in the order of the schemas.
inline Elements elements_of(const Tensor& input, const Tensor& target,
                            const std::optional<Tensor>& weight, int64_t activation, double scale,
                            double offset, bool per_sample, bool per_class,
                            std::optional<int64_t> ignore_index, double label_smoothing,
                            int64_t extra, double focal_gamma) {
  return {input,
          target,
          weight,
          static_cast<Activation>(activation),
          scale,
          offset,
          per_sample,
          per_class,
          ignore_index,
          label_smoothing,
          static_cast<unsigned>(extra),
          focal_gamma};
}

// Those of every loss.
inline Scoring scoring_of(double tp_weight, double fp_weight, double fn_weight, double smooth,
                          double gamma, int64_t link, int64_t absent, int64_t average,
                          int64_t reduction) {
  return {{tp_weight, fp_weight, fn_weight, smooth, gamma, static_cast<Link>(link),
           static_cast<Absent>(absent)},
          static_cast<Average>(average),
          static_cast<Reduction>(reduction)};
}

// The loss of groups [samples, classes], uninitialised: a scalar, or what of that is kept.
inline Tensor empty_loss(const Scoring& scoring, bool per_sample, bool per_class, int64_t samples,
                         int64_t classes, bool is_double, const Tensor& like) {
  const bool keep = scoring.reduction == Reduction::kNone;
  const bool keep_samples = keep && per_sample;
  const bool keep_classes = keep && per_class && scoring.average == Average::kNone;
  if (keep_samples && keep_classes) return empty({samples, classes}, is_double, like);
  if (keep_samples) return empty({samples}, is_double, like);
  if (keep_classes) return empty({classes}, is_double, like);
  return empty({}, is_double, like);
}

inline Tensor empty_loss(const Layout& layout, const Scoring& scoring, const Elements& elements) {
  return empty_loss(scoring, elements.per_sample, elements.per_class, layout.sample.size,
                    layout.cls.size, elements.input.scalar_type() == ScalarType::Double,
                    elements.input);
}

// How a pointwise loss is made of the sums of `extra`.
inline Pointwise pointwise_of(unsigned extra, double score_weight, double log_pos, double log_neg,
                              double focal, double positives, double negatives) {
  STD_TORCH_CHECK((log_pos == 0.0 && log_neg == 0.0) || (extra & kLogLoss) != 0,
                  "customloss: a cross-entropy needs the sums of the log-loss");
  STD_TORCH_CHECK(focal == 0.0 || (extra & kFocal) != 0, "customloss: a focal loss needs its sums");
  return {
      score_weight,         log_pos, log_neg, focal, positives, negatives, row_of(extra, kLogLoss),
      row_of(extra, kFocal)};
}

// What `sums_score` trusts of the sums and of the weights of the classes.
inline void check_sums(const Tensor& sums, const std::optional<Tensor>& class_weight,
                       unsigned extra, bool per_sample, const Scoring& scoring,
                       const Pointwise& pointwise) {
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
}

// The gradient by one operand, uninitialised: like that operand, and in what the sums of its
// elements are computed in for a weight, which the caller may have to add up further.
inline Tensor empty_gradient(const Elements& elements, Wrt wrt) {
  switch (wrt) {
    case Wrt::kInput: return torch::stable::empty_like(elements.input);
    case Wrt::kTarget:
      STD_TORCH_CHECK(dtype_of(elements.target) >= Dtype::kFloat16,
                      "customloss: an integer target has no gradient");
      return torch::stable::empty_like(elements.target);
    default: {
      STD_TORCH_CHECK(wrt == Wrt::kWeight, "customloss: no such gradient");
      const bool is_double = elements.input.scalar_type() == ScalarType::Double;
      return torch::stable::new_empty(elements.input, elements.input.sizes(),
                                      is_double ? ScalarType::Double : ScalarType::Float);
    }
  }
}

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

inline OuterGrad outer_grad(const std::optional<Tensor>& grad, const Tensor& coefficients,
                            const Elements& elements, const Layout& layout) {
  const bool per_sample = elements.per_sample;
  const int64_t samples = layout.sample.size, classes = elements.per_class ? layout.cls.size : 1;
  STD_TORCH_CHECK(coefficients.scalar_type() == ScalarType::Double &&
                      coefficients.is_contiguous() &&
                      coefficients.numel() == rows_of(elements.extra) * samples * classes,
                  "customloss: coefficients must be contiguous float64 [rows, samples, classes]");
  OuterGrad outer;
  if (!grad) return outer;
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

}  // namespace customloss
