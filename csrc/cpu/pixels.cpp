// The sums and their gradient where the classes of a pixel are read together, on the CPU.
//
// Pixels are cut into units by the shape alone, units into tiles that are staged class by class in
// the second-level cache, whatever the strides. float32 runs of a tile are flushed to float64, and
// the units of a sample are added in order: the same bits come out on 1 or 64 threads.
// Bytes moved: forward reads input and target once; backward reads both and writes the gradient.
#include "pixels.h"

#include <cmath>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../ceil_div.h"
#include "walk.h"

namespace customloss::cpu {
namespace {

// How the pixels of a sample are cut.
struct Cut {
  int64_t tile, unit, units;  // pixels, pixels, units per sample

  Cut(const Layout& layout, int rows) {
    constexpr int64_t kTile = 65536, kUnit = 65536, kMostNumbers = int64_t{1} << 21;
    const int64_t classes = std::max<int64_t>(1, layout.cls.size);
    tile = std::clamp<int64_t>(kTile / classes / 16 * 16, 16, 512);
    // at most so many units that their partial sums stay small beside the input
    const int64_t most = std::clamp<int64_t>(kMostNumbers / (rows * classes), 64, 4096);
    const int64_t least = std::max(ceil_div(kUnit, classes), ceil_div(layout.reduced_size, most));
    unit = ceil_div(least, tile) * tile;
    units = std::max<int64_t>(1, ceil_div(layout.reduced_size, unit));
  }
};

// Memory that a thread keeps from call to call: fresh pages would cost as much as the work.
template <class T>
class Scratch {
 public:
  T* take(int64_t size) {
    thread_local std::vector<char> memory;
    constexpr size_t kLine = 64;
    const size_t bytes = static_cast<size_t>(size) * sizeof(T) + kLine;
    if (memory.size() < bytes) memory.resize(bytes);
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory.data());
    return reinterpret_cast<T*>((at + kLine - 1) / kLine * kLine);
  }
};

// A class number as it lies in memory.
int64_t label_at(const Memory& from, int64_t offset) {
  const char* const at = from.at(offset);
  return with_label_dtype(from.dtype, [&]<class From>() {
    return static_cast<int64_t>(*reinterpret_cast<const From*>(at));
  });
}

// Ignored values as Python writes them: one number, or [1, 2]; with `more`, one more of them.
std::string listed(const Ignored& ignored, const std::string& more = {}) {
  std::string text;
  for (int k = 0; k < ignored.count; ++k) {
    text += (k > 0 ? ", " : "") + std::to_string(ignored.values[k]);
  }
  if (!more.empty()) text += ", " + more;
  return ignored.count == 1 && more.empty() ? text : "[" + text + "]";
}

// The first class number, in the order of the units, that is neither a class nor ignored.  All
// units are run to their end, so it does not depend on the threads which one is reported.
class UnknownLabel {
 public:
  void found(int64_t unit, int64_t label) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (label_ && unit_ < unit) return;
    unit_ = unit;
    label_ = label;
  }

  // Once all units are done.  _spec/hints.py has the same message.
  void refuse(int64_t classes, const PixelOptions& options) const {
    if (!label_) return;
    const std::string last = std::to_string(classes - 1), label = std::to_string(*label_);
    std::string message = "target: expected class numbers from 0 to " + last +
                          " (dim 1 of input has " + std::to_string(classes) + " classes)";
    if (options.ignored.count > 0) message += " or ignore_index=" + listed(options.ignored);
    message += ", got " + label;
    if (*label_ == classes) message += "; labels 1.." + label + " need target - 1";
    message += "; if " + label + " marks what does not count, pass ignore_index=";
    message += options.ignored.count > 0 ? listed(options.ignored, label) : label;
    throw std::invalid_argument(message);
  }

 private:
  std::mutex mutex_;
  int64_t unit_ = 0;
  std::optional<int64_t> label_;
};

// Fills tiles from memory, and writes gradients back.
template <class T>
class PixelStager {
 public:
  // `wrt`: what a gradient is taken by, null for sums.
  PixelStager(const Operands& operands, const PixelOptions& options, const Cut& cut, const Wrt* wrt)
      : operands_(operands),
        options_(options),
        kernels_(pixel_kernels_of<T>()),
        weighted_(operands.memory[kWeightOperand].data != nullptr) {
    const Layout& layout = operands.layout;
    const bool backward = wrt != nullptr, weighted = weighted_;
    by_class_ = (weighted && layout.cls.stride[kWeightOperand] != 0) ||
                (!options.labels && options.leaves_out());
    headline_ = (!backward || *wrt == Wrt::kInput) && is_headline(operands, options, backward);
    masks_ = (!backward || *wrt == Wrt::kInput) && is_mask(operands, options, cut);
    // Smoothed class numbers need the logarithm of every class.
    const bool every_log =
        !backward && options.smoothing.log_off != 0.0 && (options.extra & kLogLoss) != 0;
    const bool as_numbers =
        reads_class_numbers(options.extra) && !every_log && (!backward || *wrt == Wrt::kInput);
    dense_ = options.labels ? !(headline_ || as_numbers) : !masks_;
    // logits are read where they lie if none is removed or written over
    readable_ = headline_ || (operands.activation != Activation::kSoftmax && !weighted &&
                              !options.labels && !options.leaves_out());
    pitch_ = cut.tile + 16;  // rows a page apart would compete for the same cache lines
    const int64_t plane = layout.cls.size * pitch_;
    const int64_t planes = 3 + (dense_ ? 1 : 0) + (by_class_ ? 1 : 0) + (backward ? 1 : 0);
    T* free = Scratch<T>().take(planes * plane + (kPixelRows + 1) * pitch_ + 2 * pitch_);
    const auto next = [&](int64_t size) { return std::exchange(free, free + size); };
    tile_ = Tile<T>{};
    tile_.x = next(plane);
    tile_.spare = next(plane);
    tile_.other = next(plane);
    if (dense_) tile_.soft = next(plane);
    if (by_class_) tile_.weight = next(plane);
    if (backward) out_ = next(plane);
    tile_.rows = next(kPixelRows * pitch_);
    labels_ = reinterpret_cast<int32_t*>(next(2 * pitch_));
    tile_.classes = layout.cls.size;
    tile_.pitch = pitch_;
    tile_.activation = operands.activation;
    tile_.extra = options.extra;
    tile_.scale = static_cast<T>(operands.scale);
    tile_.offset = static_cast<T>(operands.offset);
    tile_.focal = {static_cast<T>(options.focal.gamma), options.focal.split};
    tile_.smoothing = rounded<T>(options.smoothing);
    if (!options.labels) tile_.ignored = options.ignored;
    tile_.ignores_nan = options.ignores_nan;
    if (options.labels) tile_.labels = labels_;
  }

  // Fills the tile with the next `pixels` of a cursor.
  const Tile<T>& stage(Cursor cursor, int64_t pixels) {
    tile_.pixels = pixels;
    tile_.lies = tile_.x;
    tile_.lies_pitch = pitch_;
    in_place_ = readable_ && lies_ready(cursor, pixels);
    for (int64_t done = 0; done < pixels;) {
      const int64_t run = std::min(cursor.run(), pixels - done);
      stage_run(cursor.place(), run, done);
      cursor.advance(run);
      done += run;
    }
    if (!headline_ && !masks_) kernels_.settle(tile_, weighted_);
    return tile_;
  }

  // The first class number among those staged that is neither a class nor ignored.
  const std::optional<int64_t>& unknown() const { return unknown_; }

  void add_sums(const Tile<T>& tile, double* to, int64_t to_pitch) const {
    if (masks_) return kernels_.mask_sums(tile, to, to_pitch);
    headline_ ? kernels_.headline_sums(tile, weighted_, to, to_pitch)
              : kernels_.sums(tile, to, to_pitch);
  }

  void gradient(const Tile<T>& tile, Wrt wrt, const T* by, T* out, int64_t out_pitch) const {
    if (masks_) return kernels_.mask_gradient(tile, by, out, out_pitch);
    headline_ ? kernels_.headline_gradient(tile, weighted_, by, out, out_pitch)
              : kernels_.gradient(tile, wrt, by, out, out_pitch);
  }

  // Where the gradient of a tile is computed: in place if the output has the pixels of a class side
  // by side, else in a buffer that write() copies.
  T* out(const Cursor& cursor, int64_t pixels, int64_t* pitch) const {
    const Layout& layout = operands_.layout;
    const bool in_place = operands_.memory[kOutOperand].dtype == kDtypeOf<T> &&
                          layout.inner().stride[kOutOperand] == 1 && cursor.run() >= pixels;
    *pitch = in_place ? layout.cls.stride[kOutOperand] : pitch_;
    if (!in_place) return out_;
    return reinterpret_cast<T*>(
        operands_.memory[kOutOperand].at(cursor.place().offset[kOutOperand]));
  }

  void write(const T* out, Cursor cursor, int64_t pixels) const {
    if (out != out_) return;
    const Layout& layout = operands_.layout;
    const Memory& to = operands_.memory[kOutOperand];
    for (int64_t done = 0; done < pixels;) {
      const int64_t run = std::min(cursor.run(), pixels - done);
      kernels_.unstage(to.dtype, out + done, pitch_, layout.cls.size, run,
                       to.at(cursor.place().offset[kOutOperand]), layout.cls.stride[kOutOperand],
                       layout.inner().stride[kOutOperand]);
      cursor.advance(run);
      done += run;
    }
  }

 private:
  // Whether headline_sums() and headline_gradient() can do it.
  bool is_headline(const Operands& operands, const PixelOptions& options, bool backward) const {
    unsigned extras = kLogLoss;
    if (options.smoothing.on == 1.0 && options.smoothing.off == 0.0 &&
        options.smoothing.log_off == 0.0) {
      extras |= kFocal;
    }
    if (!backward) extras |= kSupport;
    if (!backward && !weighted_ && !(options.extra & kFocal)) extras |= kHard;
    return kernels_.headline_sums != nullptr && options.labels && !by_class_ &&
           operands.plain(Activation::kSoftmax) && (options.extra & ~extras) == 0 &&
           operands.layout.cls.size <= kernels_.most_classes;
  }

  // Whether mask_sums() and mask_gradient() can do it.
  bool is_mask(const Operands& operands, const PixelOptions& options, const Cut& cut) const {
    const unsigned beside = options.extra & ~unsigned{kSupport};
    const Smoothing<double>& smoothing = options.smoothing;
    const double gamma = options.focal.gamma;
    const bool whole = gamma == 1.0 || gamma == 2.0 || gamma == 3.0 || gamma == 4.0;
    return kernels_.mask_sums != nullptr && !weighted_ && !options.labels &&
           !options.leaves_out() && operands.memory[kTargetOperand].dtype == Dtype::kBool &&
           (operands.layout.reduced_axes == 1 || operands.layout.inner().size % cut.tile == 0) &&
           operands.layout.inner().stride[kTargetOperand] == 1 &&
           operands.plain(Activation::kSigmoid) && smoothing.on == 1.0 && smoothing.off == 0.0 &&
           smoothing.log_on == 1.0 && smoothing.log_off == 0.0 &&
           (beside == kLogLoss || (beside == kFocal && whole));
  }

  bool lies_ready(const Cursor& cursor, int64_t pixels) {
    const Layout& layout = operands_.layout;
    const Memory& input = operands_.memory[kInputOperand];
    // Planes of one size may compete for the same cache lines: many are better copied into x.
    constexpr int64_t kManyPlanes = 16;
    if (input.dtype != kDtypeOf<T> || layout.inner().stride[kInputOperand] != 1 ||
        cursor.run() < pixels || layout.cls.size > kManyPlanes) {
      return false;
    }
    tile_.lies = reinterpret_cast<const T*>(input.at(cursor.place().offset[kInputOperand]));
    tile_.lies_pitch = layout.cls.stride[kInputOperand];
    return true;
  }

  void fill(int operand, const Place& place, int64_t classes, int64_t run, T* to) const {
    const Memory& from = operands_.memory[operand];
    const Layout& layout = operands_.layout;
    kernels_.stage(from.dtype, from.at(place.offset[operand]), layout.cls.stride[operand],
                   layout.inner().stride[operand], classes, run, to, pitch_);
  }

  void stage_run(const Place& place, int64_t run, int64_t at) {
    const Layout& layout = operands_.layout;
    if (!in_place_) fill(kInputOperand, place, layout.cls.size, run, tile_.x + at);
    bool unknown = false;
    if (options_.labels) {
      const Memory& from = operands_.memory[kTargetOperand];
      unknown = kernels_.stage_labels(from.dtype, from.at(place.offset[kTargetOperand]),
                                      layout.inner().stride[kTargetOperand], run, layout.cls.size,
                                      options_.ignored, labels_ + at);
    } else if (masks_) {
      const Memory& from = operands_.memory[kTargetOperand];
      tile_.hard = reinterpret_cast<const uint8_t*>(from.at(place.offset[kTargetOperand]));
      tile_.hard_pitch = layout.cls.stride[kTargetOperand];
    } else {
      fill(kTargetOperand, place, layout.cls.size, run, tile_.soft + at);
    }
    if (weighted_) {
      T* const live = tile_.rows + kLive * pitch_;
      by_class_ ? fill(kWeightOperand, place, layout.cls.size, run, tile_.weight + at)
                : fill(kWeightOperand, place, 1, run, live + at);
    }
    if (unknown && options_.refuses && !unknown_) find_unknown(place, run, at);
  }

  // Whether a staged pixel has a weight other than 0.
  bool weighs(int64_t i) const {
    if (!weighted_) return true;
    if (!by_class_) return tile_.rows[kLive * pitch_ + i] != T(0);
    for (int64_t c = 0; c < tile_.classes; ++c) {
      if (tile_.weight[c * pitch_ + i] != T(0)) return true;
    }
    return false;
  }

  // A run is known to have such a class number, but its pixel may weigh nothing.
  void find_unknown(const Place& place, int64_t run, int64_t at) {
    const int64_t stride = operands_.layout.inner().stride[kTargetOperand];
    for (int64_t i = 0; i < run; ++i) {
      if (labels_[at + i] >= 0) continue;
      const int64_t label =
          label_at(operands_.memory[kTargetOperand], place.offset[kTargetOperand] + i * stride);
      const bool known = label >= 0 && label < tile_.classes;
      if (known || options_.ignored.has(label) || !weighs(at + i)) continue;
      unknown_ = label;
      return;
    }
  }

  const Operands& operands_;
  const PixelOptions& options_;
  const PixelKernels<T>& kernels_;
  const bool weighted_;
  Tile<T> tile_;
  int64_t pitch_;
  bool by_class_, dense_, headline_, masks_, readable_, in_place_ = false;
  int32_t* labels_;
  T* out_ = nullptr;
  std::optional<int64_t> unknown_;
};

// Calls body(cursor, pixels) for every tile of a unit, with the cursor at its first pixel.
template <class Body>
void for_tiles(const Layout& layout, const Cut& cut, int64_t unit, const Body& body) {
  Place origin;
  origin.move(layout.sample, unit / cut.units);
  const int64_t first = unit % cut.units * cut.unit;
  const int64_t last = std::min(layout.reduced_size, first + cut.unit);
  if (first >= last) return;
  Cursor cursor(layout, origin, first);
  for (int64_t i = first; i < last; i += cut.tile) {
    const int64_t pixels = std::min(cut.tile, last - i);
    body(cursor, pixels);
    for (int64_t left = pixels; left > 0;) {
      const int64_t run = std::min(cursor.run(), left);
      cursor.advance(run);
      left -= run;
    }
  }
}

template <class T>
void sums_of(const Operands& operands, const PixelOptions& options, bool per_class, double* sums) {
  const Layout& layout = operands.layout;
  const int rows = rows_of(options.extra);
  const Cut cut(layout, rows);
  const int64_t samples = layout.sample.size, classes = layout.cls.size;
  const int64_t numbers = rows * classes;
  std::unique_ptr<double[]> partials(new double[samples * cut.units * numbers]());
  UnknownLabel unknown;
  for_units(samples * cut.units, samples * classes * layout.reduced_size, [&](int64_t unit) {
    PixelStager<T> stager(operands, options, cut, nullptr);
    double* const partial = &partials[unit * numbers];
    for_tiles(layout, cut, unit, [&](const Cursor& cursor, int64_t pixels) {
      stager.add_sums(stager.stage(cursor, pixels), partial, classes);
    });
    if (stager.unknown()) unknown.found(unit, *stager.unknown());
  });
  unknown.refuse(classes, options);
  const int64_t width = per_class ? classes : 1;
  std::fill_n(sums, rows * samples * width, 0.0);
  for (int64_t unit = 0; unit < samples * cut.units; ++unit) {
    const double* const partial = &partials[unit * numbers];
    for (int64_t row = 0; row < rows; ++row) {
      double* const to = sums + (row * samples + unit / cut.units) * width;
      for (int64_t c = 0; c < classes; ++c) to[per_class ? c : 0] += partial[row * classes + c];
    }
  }
}

// The gradient by the sums of one sample, [rows, classes], as the loops take it.
template <class T>
void gather(const PixelGrads& grads, unsigned extra, int64_t sample, int64_t classes, T* by) {
  const int rows = rows_of(extra);
  for (int row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < classes; ++c) {
      by[row * classes + c] = static_cast<T>(grads.at(row, sample, c));
    }
  }
  if (grads.wrt == Wrt::kWeight) return;
  for (int64_t c = 0; c < classes; ++c) {
    double combined[4];
    combine_grads(grads.wrt, extra, [&](int row) { return grads.at(row, sample, c); }, combined);
    for (int row = 0; row < 4; ++row) by[row * classes + c] = static_cast<T>(combined[row]);
  }
}

template <class T>
void gradient_of(const Operands& operands, PixelOptions options, const PixelGrads& grads) {
  const Layout& layout = operands.layout;
  // The last rows do not change with the input: they are dropped.
  static_assert(kFixedExtras > (kEveryExtra & ~kFixedExtras), "gather() takes them to be the last");
  if (grads.wrt == Wrt::kInput) options.extra &= ~kFixedExtras;
  options.refuses = false;  // the forward pass has looked
  const int rows = rows_of(options.extra);
  const Cut cut(layout, rows);
  const int64_t samples = layout.sample.size, classes = layout.cls.size;
  for_units(samples * cut.units, samples * classes * layout.reduced_size, [&](int64_t unit) {
    std::vector<T> by(rows * classes);
    gather(grads, options.extra, unit / cut.units, classes, by.data());
    PixelStager<T> stager(operands, options, cut, &grads.wrt);
    for_tiles(layout, cut, unit, [&](const Cursor& cursor, int64_t pixels) {
      int64_t pitch;
      T* const out = stager.out(cursor, pixels, &pitch);
      stager.gradient(stager.stage(cursor, pixels), grads.wrt, by.data(), out, pitch);
      stager.write(out, cursor, pixels);
    });
  });
}

}  // namespace

void pixel_sums(const Operands& operands, const PixelOptions& options, bool per_class,
                double* sums) {
  operands.memory[kInputOperand].dtype == Dtype::kFloat64
      ? sums_of<double>(operands, options, per_class, sums)
      : sums_of<float>(operands, options, per_class, sums);
}

void pixel_gradient(const Operands& operands, const PixelOptions& options,
                    const PixelGrads& grads) {
  operands.memory[kInputOperand].dtype == Dtype::kFloat64
      ? gradient_of<double>(operands, options, grads)
      : gradient_of<float>(operands, options, grads);
}

}  // namespace customloss::cpu
