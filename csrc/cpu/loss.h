// Writes a loss that was computed in float64 into the tensor that is returned.
#pragma once

#include <algorithm>
#include <vector>

#include "../torch.h"

namespace customloss::cpu {

inline void store(const std::vector<double>& values, Tensor* loss) {
  void* const to = loss->mutable_data_ptr();
  if (loss->scalar_type() == ScalarType::Double) {
    std::copy(values.begin(), values.end(), static_cast<double*>(to));
  } else {
    std::copy(values.begin(), values.end(), static_cast<float*>(to));
  }
}

}  // namespace customloss::cpu
