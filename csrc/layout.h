// How a tensor of any rank and any strides becomes the few loops that a kernel runs.
//
// Every dimension of `input` plays one of two roles: it tells groups apart (the class dimension
// when scores are per class, the sample dimension when they are per sample), or it is summed
// over.  The kernels see
//     sample s  x  class c  x  reduced index (up to kMaxReduced nested axes)
// and reach element (s, c, r...) of each operand by its own strides; nothing is copied, and a
// broadcast weight has stride 0.  Neighbouring reduced axes are merged wherever every operand
// allows it, so that contiguous and channels_last tensors end with one or two of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace customloss {

constexpr int kMaxReduced = 12;

// The operands of one pass.  kOutOperand is the gradient; a forward pass has none.
enum Operand : int { kInputOperand = 0, kTargetOperand, kWeightOperand, kOutOperand, kOperands };

struct Axis {
  int64_t size = 1;
  int64_t stride[kOperands] = {0, 0, 0, 0};  // in elements of each operand
};

struct Layout {
  Axis sample, cls;           // the group axes; size 1 where groups are not told apart
  Axis reduced[kMaxReduced];  // outermost first; the last is the innermost
  int reduced_axes = 0;       // at least 1
  int64_t reduced_size = 1;   // product of the reduced sizes

  int64_t groups() const { return sample.size * cls.size; }
  const Axis& inner() const { return reduced[reduced_axes - 1]; }
  // The classes lie next to each other in memory: [N, C] rows and channels_last.
  bool interleaved() const {
    return cls.size > 1 && cls.stride[kInputOperand] == 1 && inner().stride[kInputOperand] != 1;
  }
};

// Sizes and strides of one operand as its tensor has them.  `rank` may be below the input's; the
// last dimensions are then the common ones, as in broadcasting.  An absent operand has rank -1.
struct Strided {
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;
  int rank = -1;

  int64_t stride_at(int dim, int input_rank) const {
    const int own = dim - (input_rank - rank);
    if (rank < 0 || own < 0 || sizes[own] == 1) return 0;
    return strides[own];
  }
};

inline bool mergeable(const Axis& outer, const Axis& inner) {
  for (int k = 0; k < kOperands; ++k) {
    if (outer.stride[k] != inner.stride[k] * inner.size) return false;
  }
  return true;
}

// Returns false when more than kMaxReduced reduced axes are left after merging.
inline bool make_layout(const std::array<Strided, kOperands>& operands, bool per_sample,
                        bool per_class, Layout* layout) {
  const Strided& input = operands[kInputOperand];
  std::array<Axis, 64> reduced;
  int count = 0;
  for (int dim = 0; dim < input.rank; ++dim) {
    Axis axis;
    axis.size = input.sizes[dim];
    for (int k = 0; k < kOperands; ++k) axis.stride[k] = operands[k].stride_at(dim, input.rank);
    if (dim == 0 && per_sample) {
      layout->sample = axis;
    } else if (dim == 1 && per_class) {
      layout->cls = axis;
    } else if (axis.size != 1) {
      reduced[count++] = axis;
    }
  }
  std::stable_sort(reduced.begin(), reduced.begin() + count, [](const Axis& a, const Axis& b) {
    return a.stride[kInputOperand] > b.stride[kInputOperand];
  });
  layout->reduced_axes = 0;
  layout->reduced_size = 1;
  for (int i = 0; i < count; ++i) {
    layout->reduced_size *= reduced[i].size;
    Axis* last = layout->reduced_axes ? &layout->reduced[layout->reduced_axes - 1] : nullptr;
    if (last != nullptr && mergeable(*last, reduced[i])) {
      const int64_t merged = last->size * reduced[i].size;
      *last = reduced[i];
      last->size = merged;
    } else {
      if (layout->reduced_axes == kMaxReduced) return false;
      layout->reduced[layout->reduced_axes++] = reduced[i];
    }
  }
  if (layout->reduced_axes == 0) layout->reduced[layout->reduced_axes++] = Axis{};
  return true;
}

}  // namespace customloss
