// From the operands of an operator to a pass over its elements: which loader (io.cuh) reads them,
// and how the work is cut (partition.h).
#pragma once

#include "../arguments.h"
#include "walk.cuh"

namespace customloss::cuda {

// Set by tests: index arithmetic as if the tensor had more than 2^31 elements.
extern "C" C10_EXPORT bool customloss_cuda_wide_index;

struct Work {
  Pass pass{};
  Planar planar{};
  Columns columns{};
  bool by_columns = false;
  bool direct = false;  // contiguous operands of dtypes that Direct knows

  int64_t units() const { return by_columns ? columns.bands : planar.units; }
};

inline bool direct_target(Dtype input, Dtype target) {
  if (target == input || target == Dtype::kBool || target == Dtype::kInt64) return true;
  return input != Dtype::kFloat64 && (target == Dtype::kUInt8 || target == Dtype::kFloat32);
}

inline bool direct_weight(Dtype input, Dtype weight) {
  return weight == input || weight == Dtype::kFloat32 || weight == Dtype::kBool ||
         weight == Dtype::kUInt8;
}

// Every operand is contiguous along `axis`; a weight may be broadcast along it.
inline bool contiguous(const Pass& pass, const Axis& axis) {
  if (axis.stride[kInputOperand] != 1 || axis.stride[kTargetOperand] != 1) return false;
  if (pass.out != nullptr && axis.stride[kOutOperand] != 1) return false;
  const int64_t weight = axis.stride[kWeightOperand];
  return pass.data[kWeightOperand] == nullptr || weight == 0 || weight == 1;
}

// The rows of every operand follow each other without a gap.
inline bool dense_rows(const Pass& pass) {
  const Layout& layout = pass.layout;
  const Axis& row = layout.inner();
  for (int k : {kInputOperand, kTargetOperand, kWeightOperand, kOutOperand}) {
    const bool used = k == kOutOperand ? pass.out != nullptr : pass.data[k] != nullptr;
    if (used && (layout.cls.stride[k] != 1 || row.stride[k] != layout.cls.size)) return false;
  }
  return layout.reduced_axes == 1;
}

inline bool runs_aligned(const Pass& pass, int width) {
  const Layout& layout = pass.layout;
  bool even = reinterpret_cast<uintptr_t>(pass.data[kInputOperand]) % 16 == 0;
  even &= layout.sample.stride[kInputOperand] % width == 0;
  even &= layout.cls.stride[kInputOperand] % width == 0;
  for (int axis = 0; axis + 1 < layout.reduced_axes; ++axis) {
    even &= layout.reduced[axis].stride[kInputOperand] % width == 0;
  }
  return even;
}

// Joins every `fold` rows of a dense matrix into one; returns the columns of the last, which may be
// shorter.
inline int64_t fold_rows(Layout* layout, int64_t fold) {
  Axis& row = layout->reduced[0];
  const int64_t classes = layout->cls.size, left = row.size % fold;
  layout->cls.size *= fold;
  row.size = ceil_div(row.size, fold);
  layout->reduced_size = row.size;
  for (int64_t& stride : row.stride) stride *= fold;
  return left == 0 ? layout->cls.size : left * classes;
}

inline void plan_by_columns(Work* work, int width) {
  Layout& layout = work->pass.layout;
  const int64_t classes = layout.cls.size;
  int64_t fold = work->direct ? fold_of(classes, width) : 1;
  if (fold > 1) {
    const bool foldable = dense_rows(work->pass) && classes <= kThreads &&
                          classes * fold <= int64_t{kThreads} * width;
    if (!foldable) work->direct = false;
  }
  if (!work->direct) width = 1, fold = 1;
  const int64_t tail = fold > 1 ? fold_rows(&layout, fold) : classes;
  work->columns = plan_columns(layout, classes, width, fold, tail);
  work->columns.wide |= customloss_cuda_wide_index;
  for (int k = 0; k < kOperands; ++k) {
    work->columns.step[k] = layout.inner().stride[k] * work->columns.slots * work->pass.bytes[k];
  }
}

inline void plan_by_groups(Work* work, int width) {
  if (!work->direct) width = 1;
  const bool aligned = width == 1 || runs_aligned(work->pass, width);
  work->planar = plan_planar(work->pass.layout, width, aligned);
  work->planar.wide |= customloss_cuda_wide_index;
  for (int k = 0; k < kOperands; ++k) {
    const int64_t vector = work->pass.layout.inner().stride[k] * work->pass.bytes[k] * width;
    work->planar.step[k] = vector * work->planar.lanes;
  }
}

inline Pass pass_of(const Reading& reading, const Layout& layout, const Tensor* out) {
  Pass pass{};
  pass.layout = layout;
  const Tensor* tensors[kOperands] = {&reading.input, &reading.target,
                                      reading.weight ? &*reading.weight : nullptr, out};
  for (int k = 0; k < kOperands; ++k) {
    if (tensors[k] == nullptr) continue;
    pass.dtype[k] = dtype_of(*tensors[k]);
    pass.bytes[k] = dtype_size(pass.dtype[k]);
    if (k != kOutOperand) pass.data[k] = static_cast<const char*>(tensors[k]->const_data_ptr());
  }
  if (out != nullptr) pass.out = static_cast<char*>(out->mutable_data_ptr());
  pass.activation = reading.activation;
  pass.scale = reading.scale;
  pass.offset = reading.offset;
  pass.scale32 = static_cast<float>(reading.scale);
  pass.offset32 = static_cast<float>(reading.offset);
  return pass;
}

// `allow_direct`: whether the caller has a kernel for direct operands.  Its vectors are of `width`
// elements of a group, or of `column_width` classes.
inline Work plan(const Pass& given, bool allow_direct, int width, int column_width) {
  Work work;
  work.pass = given;
  const Pass& pass = work.pass;
  const Dtype input = pass.dtype[kInputOperand];
  work.by_columns = by_columns(pass.layout);
  const Axis& axis = work.by_columns ? pass.layout.cls : pass.layout.inner();
  work.direct =
      allow_direct && direct_target(input, pass.dtype[kTargetOperand]) &&
      (pass.data[kWeightOperand] == nullptr || direct_weight(input, pass.dtype[kWeightOperand])) &&
      contiguous(pass, axis) && (work.by_columns || axis.size >= 2 * width);
  work.by_columns ? plan_by_columns(&work, column_width) : plan_by_groups(&work, width);
  return work;
}

inline Work plan(const Reading& reading, const Layout& layout, const Tensor* out,
                 bool allow_direct) {
  const Pass pass = pass_of(reading, layout, out);
  const int width = 16 / pass.bytes[kInputOperand];
  return plan(pass, allow_direct, width, width);
}

}  // namespace customloss::cuda
