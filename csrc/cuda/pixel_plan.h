// How work is cut where the classes of a pixel are read together (../pixel.h), and which kernel
// serves it: decided on the host by shape, strides and dtypes alone.
//
//   few    softmax, class numbers, up to 8 classes in planes or 4 in rows: a thread owns pixels
//          (pixel_few.cuh)
//   tile   softmax, class numbers, up to 256 classes of any strides (pixel_tile.cuh)
//   element  no softmax, a dense target, at most a log-loss or a focal term: vectors of elements
//          that need no pixel (pixel_element.cuh)
//   any    everything else: element by element, for a softmax after a pass over the pixels
//          (pixel_any.cuh)
#pragma once

#include <limits>

#include "plan.h"

namespace customloss::cuda {

// The operands of one pass, as the kernels of pixels receive them.
struct PixelPass {
  Pass pass;
  int64_t samples, pixels;  // pixels of a sample
  int classes;
  bool labels, per_class;
  Ignored ignored;   // the values of a target that do not count
  bool ignores_nan;  // whether a dense target that is NaN does not count
  bool refuses;      // a class number that is neither a class nor ignored makes a NaN
  Smoothing<double> smoothing;
  Focal<double> focal;
  Smoothing<float> smoothing32;
  Focal<float> focal32;
  float ignored32;  // the first of `ignored`, or NaN
  unsigned extra;
  bool rows;  // few: pixels follow each other without a gap, each with its classes side by side
  bool wide;

  // Whether elements of a dense target may not count.
  CUSTOMLOSS_HD bool leaves_out() const { return !labels && (ignored.count > 0 || ignores_nan); }
};

// How the pixels of a sample are cut into units, of which a block takes one.
struct PixelCut {
  int64_t units;   // of a sample
  int64_t chunk;   // of a unit: vectors (few), tiles (tile), pixels (any)
  int64_t pieces;  // of a sample, counted as in `chunk`
  int64_t vectors_per_run;
  int64_t step[kOperands];  // bytes to the next vector of a thread (few)
  int team, team_bits;      // threads of a pixel (tile), or classes of a block at a time (any)
  int most;                 // classes of a thread (tile)
  int spots, spots_bits;    // pixels of a block at a time
  int64_t class_tiles = 1;  // blocks to cover all classes (any)
};

enum class PixelKernel { kFew, kTile, kTileRows, kElement, kElementColumns, kAny };

struct PixelWork {
  PixelPass px{};
  PixelCut cut{};
  Planar planar{};    // kElement
  Columns columns{};  // kElementColumns
  PixelKernel kernel = PixelKernel::kAny;
  int stats_lanes = 1;  // threads of a pixel in the pass over pixels (any)
  Activation activation{};
  bool is_double = false;

  int64_t blocks() const {
    switch (kernel) {
      case PixelKernel::kElement: return planar.blocks();
      case PixelKernel::kElementColumns: return columns.blocks();
      default: return px.samples * cut.units * cut.class_tiles;
    }
  }
  int64_t units() const {
    switch (kernel) {
      case PixelKernel::kElement: return planar.units;
      case PixelKernel::kElementColumns: return columns.bands;
      default: return cut.units;
    }
  }
  // Partial sums of one group, which is a class of a sample or all of its classes.
  int64_t parts() const { return units() * (px.per_class ? 1 : px.classes); }
  int64_t groups() const { return px.samples * (px.per_class ? px.classes : 1); }
};

// How many numbers per pixel the pass over pixels leaves for the one over elements.
constexpr int kPixelStats = 7;

// The most classes of the kernels that keep a pixel on the chip.
constexpr int kFewClasses = 8, kTileClasses = 256;
// The most classes in rows for which a thread owns whole pixels.  2, 3 and 4 have kernels of their
// own.
constexpr int kRowClasses = 4;
// Classes of a thread in the kernels of tiles: two sizes for planes, and that for rows.
constexpr int kTileSmall = 16, kTileLarge = 32, kTileRow = 8;

inline int bits_of(int64_t power) { return std::countr_zero(static_cast<uint64_t>(power)); }

constexpr int few_width(int classes, int bytes) { return (classes <= 4 ? 16 : 8) / bytes; }

// Elements of a vector in the kernels of elements, as many as the registers hold.
CUSTOMLOSS_HD constexpr int element_width(unsigned extra, int bytes) {
  return extra == kFocal ? 4 : 16 / bytes;
}
// Classes of a thread in those of columns, likewise.
CUSTOMLOSS_HD constexpr int column_width(unsigned extra) { return extra == kFocal ? 2 : 4; }

// Units of about the same size, `smallest` pieces or more, at most `most` of them in all samples
// (unless a unit would exceed `largest`).
inline void cut_units(int64_t samples, int64_t smallest, int64_t largest, PixelCut* cut) {
  constexpr int64_t kMostUnits = 2048;
  const int64_t even = ceil_div(samples * cut->pieces, kMostUnits);
  cut->chunk = std::min(std::max(even, smallest), largest);
  cut->units = std::max<int64_t>(1, ceil_div(cut->pieces, cut->chunk));
}

inline PixelCut cut_few(const PixelPass& px, int width) {
  PixelCut cut{};
  const Axis& inner = px.pass.layout.inner();
  cut.vectors_per_run = std::max<int64_t>(1, ceil_div(inner.size, width));
  cut.pieces = px.pixels == 0 ? 0 : px.pixels / inner.size * cut.vectors_per_run;
  // A thread adds its share of a unit in float32, so this bounds the unit.
  constexpr int kMostAdds = 256;
  PixelCut blocks{};
  blocks.pieces = ceil_div(cut.pieces, kThreads);
  cut_units(px.samples, 2, kMostAdds / width, &blocks);
  cut.chunk = blocks.chunk * kThreads;
  for (int k = 0; k < kOperands; ++k) {
    cut.step[k] = inner.stride[k] * px.pass.bytes[k] * kThreads * width;
  }
  cut.units = std::max<int64_t>(1, ceil_div(cut.pieces, cut.chunk));
  return cut;
}

inline PixelCut cut_tile(const PixelPass& px, bool rows) {
  PixelCut cut{};
  if (rows) {
    cut.team = static_cast<int>(power_of_two(px.classes, 32));
  } else {
    cut.team = static_cast<int>(power_of_two(ceil_div(px.classes, kTileLarge), kThreads));
  }
  cut.team_bits = bits_of(cut.team);
  cut.most = static_cast<int>(ceil_div(px.classes, cut.team));
  cut.spots = kThreads / cut.team;
  cut.spots_bits = bits_of(cut.spots);
  cut.pieces = ceil_div(px.pixels, cut.spots);
  cut_units(px.samples, 4, int64_t{1} << 30, &cut);
  return cut;
}

inline PixelCut cut_any(const PixelPass& px) {
  PixelCut cut{};
  if (px.pass.layout.interleaved()) {
    cut.team = static_cast<int>(power_of_two(px.classes, 64));
  } else {
    const int64_t spots = power_of_two(px.pixels, kThreads);
    cut.team = static_cast<int>(power_of_two(px.classes, kThreads / spots));
  }
  cut.team_bits = bits_of(cut.team);
  cut.spots = kThreads / cut.team;
  cut.spots_bits = bits_of(cut.spots);
  cut.class_tiles = ceil_div(px.classes, cut.team);
  PixelCut steps{};
  steps.pieces = ceil_div(px.pixels, cut.spots);
  cut_units(px.samples * cut.class_tiles, 8, int64_t{1} << 40, &steps);
  cut.pieces = px.pixels;
  cut.chunk = steps.chunk * cut.spots;
  cut.units = std::max<int64_t>(1, ceil_div(cut.pieces, cut.chunk));
  return cut;
}

// The dtypes of class numbers that the kernels of few and tile read.
inline bool direct_labels(Dtype target) {
  return target == Dtype::kUInt8 || target == Dtype::kInt8 || target == Dtype::kInt16 ||
         target == Dtype::kInt32 || target == Dtype::kInt64;
}

// Neighbouring pixels lie next to each other in every operand that `few` reads as vectors.
inline bool planes(const PixelPass& px) {
  const Axis& inner = px.pass.layout.inner();
  return inner.stride[kInputOperand] == 1 && inner.stride[kTargetOperand] == 1 &&
         (px.pass.out == nullptr || inner.stride[kOutOperand] == 1);
}

// Pixels follow each other without a gap, each with its classes side by side.
inline bool tight_rows(const PixelPass& px) {
  const Layout& layout = px.pass.layout;
  if (!layout.interleaved() || layout.inner().stride[kTargetOperand] != 1) return false;
  for (int k : {kInputOperand, kOutOperand}) {
    const bool used = k != kOutOperand || px.pass.out != nullptr;
    if (used && (layout.cls.stride[k] != 1 || layout.inner().stride[k] != px.classes)) return false;
  }
  return true;
}

inline PixelKernel kernel_of(const PixelWork& work, Wrt wrt) {
  const PixelPass& px = work.px;
  const bool gradient = px.pass.out != nullptr;
  const Dtype* dtypes = px.pass.dtype;
  const bool one_weight = px.pass.data[kWeightOperand] == nullptr ||
                          (px.pass.layout.cls.stride[kWeightOperand] == 0 &&
                           direct_weight(dtypes[kInputOperand], dtypes[kWeightOperand]));
  const bool logs = px.extra == kLogLoss && (gradient || px.smoothing.log_off == 0.0);
  const bool sums = px.extra == 0 || logs;
  if (work.activation != Activation::kSoftmax || !px.labels ||
      !direct_labels(dtypes[kTargetOperand]) || work.is_double || !one_weight || !sums ||
      wrt != Wrt::kInput || px.classes < 2 || px.classes > kTileClasses) {
    return PixelKernel::kAny;
  }
  const int width = few_width(px.classes, px.pass.bytes[kInputOperand]);
  const bool long_runs = px.pass.layout.inner().size >= 2 * width;
  if (px.rows && long_runs) return PixelKernel::kFew;
  if (px.pass.layout.interleaved()) return PixelKernel::kTileRows;
  const bool few = px.classes <= kFewClasses && planes(px);
  return few && long_runs ? PixelKernel::kFew : PixelKernel::kTile;
}

// Whether the kernels of elements serve the pass; plans it if so.
inline bool plan_elements(PixelWork* work, Wrt wrt) {
  PixelPass& px = work->px;
  if (work->activation == Activation::kSoftmax || px.labels || work->is_double ||
      wrt != Wrt::kInput || (px.extra != 0 && px.extra != kLogLoss && px.extra != kFocal) ||
      px.focal.split) {
    return false;
  }
  const int width = element_width(px.extra, px.pass.bytes[kInputOperand]);
  const Work planned = plan(px.pass, true, width, column_width(px.extra));
  if (!planned.direct) return false;
  px.pass = planned.pass;
  work->planar = planned.planar;
  work->columns = planned.columns;
  work->kernel = planned.by_columns ? PixelKernel::kElementColumns : PixelKernel::kElement;
  return true;
}

inline PixelWork plan_pixels(const Reading& reading, const Layout& layout, const Tensor* out,
                             Wrt wrt) {
  PixelWork work;
  PixelPass& px = work.px;
  px.pass = pass_of(reading, layout, out);
  px.samples = layout.sample.size;
  px.pixels = layout.reduced_size;
  STD_TORCH_CHECK(layout.cls.size < (int64_t{1} << 31), "customloss: too many classes");
  px.classes = static_cast<int>(layout.cls.size);
  px.labels = reading.labels();
  px.per_class = reading.per_class;
  px.ignored = reading.ignored();
  px.ignores_nan = reading.ignores_nan();
  px.refuses = reading.refuses();
  px.smoothing = reading.smoothing();
  px.smoothing32 = rounded<float>(px.smoothing);
  px.focal = {reading.focal_gamma, reading.focal_split};
  px.focal32 = {static_cast<float>(px.focal.gamma), px.focal.split};
  px.ignored32 = px.ignored.count > 0 ? static_cast<float>(px.ignored.values[0])
                                      : std::numeric_limits<float>::quiet_NaN();
  px.extra = reading.extra;
  if (out != nullptr && wrt == Wrt::kInput) px.extra &= ~kFixedExtras;
  work.activation = reading.activation;
  work.is_double = px.pass.dtype[kInputOperand] == Dtype::kFloat64;
  STD_TORCH_CHECK(!px.leaves_out() || work.activation != Activation::kSoftmax,
                  "customloss: ignored targets of a softmax need class numbers");
  if (plan_elements(&work, wrt)) return work;
  px.rows = px.classes <= kRowClasses && tight_rows(px);
  work.kernel = kernel_of(work, wrt);
  switch (work.kernel) {
    case PixelKernel::kFew:
      work.cut = cut_few(px, few_width(px.classes, px.pass.bytes[kInputOperand]));
      break;
    case PixelKernel::kTile:
    case PixelKernel::kTileRows:
      work.cut = cut_tile(px, work.kernel == PixelKernel::kTileRows);
      break;
    default:
      work.cut = cut_any(px);
      work.stats_lanes = layout.interleaved() || px.samples * px.pixels < 4096
                             ? static_cast<int>(power_of_two(ceil_div(px.classes, 4),
                                                             px.classes > 8192 ? kThreads : 32))
                             : 1;
      break;
  }
  px.wide = customloss_cuda_wide_index ||
            needs_64_bits({work.blocks(), work.cut.pieces + work.cut.chunk, px.pixels + kThreads,
                           px.samples * px.pixels + kThreads});
  return work;
}

}  // namespace customloss::cuda
