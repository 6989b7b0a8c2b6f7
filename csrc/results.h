// The tensors that the operators return, uninitialised.
#pragma once

#include "arguments.h"

namespace customloss {

// The loss of groups [samples, classes]: a scalar, or what of that is kept.
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

// That of a pass over elements.
inline Tensor empty_loss(const Scoring& scoring, const Reading& reading, const Layout& layout) {
  return empty_loss(scoring, reading.per_sample, reading.per_class, layout.sample.size,
                    layout.cls.size, reading.input.scalar_type() == ScalarType::Double,
                    reading.input);
}

// That of sums which were made before.
inline Tensor empty_loss(const Scoring& scoring, const arguments::GroupSums& given) {
  return empty_loss(scoring, given.per_sample, true, given.sums.size(1), given.sums.size(2),
                    given.wide, given.sums);
}

// The gradient by one operand: like that operand, and in what the sums of its elements are
// computed in for a weight, which the caller may have to add up further.  `like` makes a tensor in
// the memory that the caller has for gradients.
inline Tensor empty_gradient(const Reading& reading, Wrt wrt,
                             Tensor (*like)(const Tensor&) = torch::stable::empty_like) {
  switch (wrt) {
    case Wrt::kInput: return like(reading.input);
    case Wrt::kTarget:
      STD_TORCH_CHECK(dtype_of(reading.target) >= Dtype::kFloat16,
                      "customloss: an integer target has no gradient");
      return like(reading.target);
    default: {
      STD_TORCH_CHECK(wrt == Wrt::kWeight, "customloss: no such gradient");
      const bool is_double = reading.input.scalar_type() == ScalarType::Double;
      return torch::stable::new_empty(reading.input, reading.input.sizes(),
                                      is_double ? ScalarType::Double : ScalarType::Float);
    }
  }
}

}  // namespace customloss
