// The soft confusion sums and their gradient on the CPU.
//
//   sums[tp, fp, fn, tn][sample][class] = sum of w t p, w (1-t) p, w t q, w (1-t) q
//   dL/dx = w dp/dx [ t (g_tp - g_fn) + (1-t) (g_fp - g_tn) ]
//
// Work is cut into units by the shape alone, whatever the number of threads: float32 runs of at
// most kBlock elements are flushed to float64, and the units of a group are added in order, so
// the same bits come out on 1 or 64 threads.
//   planar       a unit is a stretch of one group's elements
//   interleaved  a unit is a band of rows times a stretch of neighbouring classes
// Bytes moved: forward reads input and target once; backward reads both and writes the gradient.
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../ceil_div.h"
#include "../results.h"
#include "loss.h"
#include "pages.h"
#include "pixels.h"
#include "walk.h"

namespace customloss::cpu {
namespace {

constexpr int64_t kPlanarUnit = 65536;  // elements of a group per unit
constexpr int64_t kShortAxis = 64;      // innermost axes below this are gathered

// How an interleaved layout is cut: bands of rows, tiles of columns.
struct Bands {
  int64_t rows, band_rows, bands;
  int64_t columns, tile_columns, tiles;
  int64_t fold;  // rows side by side in one block, so that few classes still fill it

  explicit Bands(const Layout& layout) {
    constexpr int64_t kMostBands = 64, kSmallestBand = 512, kSmallestUnit = 65536;
    rows = layout.reduced_size;
    columns = layout.cls.size;
    tile_columns = std::min(columns, kBlock);
    tiles = ceil_div(columns, tile_columns);
    fold = std::max<int64_t>(1, kBlock / tile_columns);
    const int64_t smallest = ceil_div(kSmallestUnit, tile_columns);
    band_rows = std::max({smallest, ceil_div(rows, kMostBands), std::min(rows, kSmallestBand)});
    band_rows = ceil_div(band_rows, fold) * fold;
    bands = ceil_div(rows, band_rows);
  }

  int64_t units(const Layout& layout) const { return layout.sample.size * bands * tiles; }
};

// One unit of an interleaved layout.
struct Band {
  int64_t sample, band, first_row, last_row, first_column, columns;

  Band(const Bands& bands, int64_t unit) {
    const int64_t tile = unit % bands.tiles;
    band = unit / bands.tiles % bands.bands;
    sample = unit / bands.tiles / bands.bands;
    first_row = band * bands.band_rows;
    last_row = std::min(bands.rows, first_row + bands.band_rows);
    first_column = tile * bands.tile_columns;
    columns = std::min(bands.tile_columns, bands.columns - first_column);
  }
};

// Calls body(patch) for the patches of a band: `fold` rows at a time.
template <class Body>
void for_patches(const Layout& layout, const Bands& bands, const Band& band, const Body& body) {
  if (band.first_row >= band.last_row) return;
  Place origin;
  origin.move(layout.sample, band.sample);
  origin.move(layout.cls, band.first_column);
  Cursor cursor(layout, origin, band.first_row);
  for (int64_t row = band.first_row; row < band.last_row;) {
    const int64_t rows = std::min({bands.fold, cursor.run(), band.last_row - row});
    body(Patch{cursor.place(), layout.inner(), layout.cls, rows, band.columns});
    cursor.advance(rows);
    row += rows;
  }
}

// Calls body(block, patch, cursor) over [first, last) of one group.  `patch` is null if the block
// was gathered; `cursor` is the place of its first element.
template <class T, class Body>
void for_blocks(const Layout& layout, const Place& origin, int64_t first, int64_t last,
                Stager<T>* stager, const Body& body) {
  if (first >= last) return;
  const bool gathered = layout.reduced_axes > 1 && layout.inner().size < kShortAxis;
  Cursor cursor(layout, origin, first);
  for (int64_t i = first; i < last;) {
    if (gathered) {
      const Cursor before = cursor;
      const Block<T> block = stager->gather(&cursor, std::min(kBlock, last - i));
      body(block, nullptr, before);
      i += block.size;
    } else {
      const int64_t size = std::min({kBlock, cursor.run(), last - i});
      const Patch patch{cursor.place(), layout.inner(), Axis{}, size, 1};
      body(stager->block(patch), &patch, cursor);
      cursor.advance(size);
      i += size;
    }
  }
}

// A float64 sum that keeps what its additions round away (Neumaier 1974).
class Total {
 public:
  void add(double term) {
    const double next = sum_ + term;
    rounded_off_ += std::abs(sum_) >= std::abs(term) ? (sum_ - next) + term : (term - next) + sum_;
    sum_ = next;
  }
  double value() const { return std::isfinite(sum_) ? sum_ + rounded_off_ : sum_; }

 private:
  double sum_ = 0.0, rounded_off_ = 0.0;
};

// ---- forward ----------------------------------------------------------------------------

template <class T>
void planar_sums(const Operands& operands, double* sums) {
  const Layout& layout = operands.layout;
  const int64_t groups = layout.groups();
  const int64_t stretches = std::max<int64_t>(1, ceil_div(layout.reduced_size, kPlanarUnit));
  std::unique_ptr<double[]> partials(new double[groups * stretches * 4]);
  for_units(groups * stretches, groups * layout.reduced_size, [&](int64_t unit) {
    const int64_t group = unit / stretches, first = unit % stretches * kPlanarUnit;
    Place origin;
    origin.move(layout.sample, group / layout.cls.size);
    origin.move(layout.cls, group % layout.cls.size);
    Total own[4];
    Stager<T> stager(operands);
    for_blocks(layout, origin, first, std::min(layout.reduced_size, first + kPlanarUnit), &stager,
               [&](const Block<T>& block, const Patch*, const Cursor&) {
                 double terms[4] = {0.0, 0.0, 0.0, 0.0};
                 block_kernels<T>().sum(block, terms);
                 for (int s = 0; s < 4; ++s) own[s].add(terms[s]);
               });
    for (int s = 0; s < 4; ++s) partials[unit * 4 + s] = own[s].value();
  });
  for (int64_t group = 0; group < groups; ++group) {
    for (int s = 0; s < 4; ++s) {
      Total sum;
      for (int64_t i = 0; i < stretches; ++i) sum.add(partials[(group * stretches + i) * 4 + s]);
      sums[s * groups + group] = sum.value();
    }
  }
}

// The columns of one band: float32 sums that are flushed to float64 in time.
template <class T>
class Columns {
 public:
  Columns(int64_t columns, int64_t fold, bool headline, double* to, int64_t to_pitch)
      : columns_(columns), fold_(fold), headline_(headline), to_(to), to_pitch_(to_pitch) {
    clear();
  }

  void add(const Block<T>& block) {
    kernels_.sum_columns(block, sums_, kPitch);
    const int64_t rows = block.size / columns_;
    for (int64_t f = 0; f < rows; ++f) ++adds_[f];
    if (adds_[0] == kColumnAdds) {
      flush();
    } else if (adds_[0] % kCarryAdds == 0) {
      kernels_.carry_columns(fold(), sums_, kPitch);
    }
  }

  void flush() {
    kernels_.flush_columns(fold(), sums_, kPitch, to_, to_pitch_);
    clear();
  }

 private:
  static constexpr int64_t kPitch = kBlock + 208;  // not a multiple of a page: no aliasing

  Fold fold() const { return {fold_, columns_, adds_, headline_}; }

  void clear() {
    for (int s = 0; s < kColumnArrays; ++s) {
      std::fill_n(sums_ + s * kPitch, fold_ * columns_, T(0));
    }
    std::fill_n(adds_, fold_, 0);
  }

  const BlockKernels<T>& kernels_ = block_kernels<T>();
  const int64_t columns_, fold_;
  const bool headline_;
  double* const to_;
  const int64_t to_pitch_;
  alignas(64) T sums_[kColumnArrays * kPitch];
  int32_t adds_[kBlock];
};

template <class T>
void interleaved_sums(const Operands& operands, double* sums) {
  const Layout& layout = operands.layout;
  const Bands bands(layout);
  const int64_t groups = layout.groups();
  std::unique_ptr<double[]> partials(new double[bands.bands * 4 * groups]);
  for_units(bands.units(layout), groups * layout.reduced_size, [&](int64_t unit) {
    const Band band(bands, unit);
    double* own =
        &partials[band.band * 4 * groups + band.sample * bands.columns + band.first_column];
    for (int s = 0; s < 4; ++s) std::fill(own + s * groups, own + s * groups + band.columns, 0.0);
    Stager<T> stager(operands);
    Columns<T> columns(band.columns, bands.fold, stager.headline(), own, groups);
    for_patches(layout, bands, band,
                [&](const Patch& patch) { columns.add(stager.staged(patch)); });
    columns.flush();
  });
  const int64_t numbers = 4 * groups;
  for_units(ceil_div(numbers, kBlock), numbers * bands.bands, [&](int64_t unit) {
    const int64_t first = unit * kBlock, last = std::min(numbers, first + kBlock);
    std::fill(sums + first, sums + last, 0.0);
    for (int64_t b = 0; b < bands.bands; ++b) {
      for (int64_t i = first; i < last; ++i) sums[i] += partials[b * numbers + i];
    }
  });
}

// sums: [4, samples, classes], float64.
void confusion_sums(const Operands& operands, double* sums) {
  const bool wide = operands.memory[kInputOperand].dtype == Dtype::kFloat64;
  if (operands.layout.interleaved()) {
    wide ? interleaved_sums<double>(operands, sums) : interleaved_sums<float>(operands, sums);
  } else {
    wide ? planar_sums<double>(operands, sums) : planar_sums<float>(operands, sums);
  }
}

// ---- backward ---------------------------------------------------------------------------

// The gradient by the sums of every group: coefficients[4, samples, classes] times `outer`.
struct GroupGrads {
  const double* coefficients;
  OuterGrad outer;
  Wrt wrt;
  int64_t groups, classes;

  template <class T>
  Coefficient<T> at(int64_t sample, int64_t cls) const {
    const double* own = coefficients + sample * classes + cls;
    const double g = outer.at(sample, cls);
    return coefficient<T>(wrt, g * own[0], g * own[groups], g * own[2 * groups],
                          g * own[3 * groups]);
  }
};

template <class T>
void planar_gradient(const Operands& operands, const GroupGrads& grads) {
  const Layout& layout = operands.layout;
  const int64_t stretches = ceil_div(layout.reduced_size, kPlanarUnit);
  for_units(layout.groups() * stretches, layout.groups() * layout.reduced_size, [&](int64_t unit) {
    const int64_t group = unit / stretches, first = unit % stretches * kPlanarUnit;
    const int64_t sample = group / layout.cls.size, cls = group % layout.cls.size;
    Place origin;
    origin.move(layout.sample, sample);
    origin.move(layout.cls, cls);
    const Coefficient<T> own = grads.at<T>(sample, cls);
    const Coefficients<T> g{&own.a, &own.b, &own.c, &own.d, false};
    const bool influence = own.has_influence();
    Stager<T> stager(operands);
    for_blocks(layout, origin, first, std::min(layout.reduced_size, first + kPlanarUnit), &stager,
               [&](const Block<T>& block, const Patch* patch, const Cursor& before) {
                 if (block.halves != nullptr) {
                   uint16_t* const out = stager.halves_out(*patch);
                   influence ? block_kernels<T>().gradient_halves(block, g, out)
                             : static_cast<void>(std::fill_n(out, block.size, uint16_t{0}));
                   return;
                 }
                 T* out = patch ? stager.out(*patch) : stager.out();
                 if (influence) {
                   block_kernels<T>().gradient(block, grads.wrt, g, out);
                 } else {
                   std::fill_n(out, block.size, T(0));
                 }
                 patch ? stager.write(*patch) : stager.scatter(before, block.size);
               });
  });
}

template <class T>
void interleaved_gradient(const Operands& operands, const GroupGrads& grads) {
  const Layout& layout = operands.layout;
  const Bands bands(layout);
  for_units(bands.units(layout), layout.groups() * layout.reduced_size, [&](int64_t unit) {
    const Band band(bands, unit);
    alignas(64) T a[kBlock], b[kBlock], c[kBlock], d[kBlock];
    typename Flag<T>::Bits influence[kBlock];
    bool all_influence = true;
    for (int64_t i = 0; i < band.columns * bands.fold; ++i) {
      const Coefficient<T> own = grads.at<T>(band.sample, band.first_column + i % band.columns);
      a[i] = own.a, b[i] = own.b, c[i] = own.c, d[i] = own.d;
      influence[i] = Flag<T>(own.has_influence()).bits;
      all_influence = all_influence && own.has_influence();
    }
    const Coefficients<T> g{a, b, c, d, true};
    Stager<T> stager(operands);
    for_patches(layout, bands, band, [&](const Patch& patch) {
      T* const out = stager.out(patch);
      block_kernels<T>().gradient(stager.staged(patch), grads.wrt, g, out);
      if (!all_influence) {
        for (int64_t i = 0; i < patch.rows * patch.columns; ++i) {
          out[i] = select(Flag<T>(influence[i]), out[i], T(0));
        }
      }
      stager.write(patch);
    });
  });
}

// ---- operators --------------------------------------------------------------------------

Operands operands_of(const Reading& reading, const Tensor* out = nullptr) {
  Operands operands{reading.layout(out), {}, reading.activation, reading.scale, reading.offset};
  operands.memory[kInputOperand] = memory(reading.input);
  operands.memory[kTargetOperand] = memory(reading.target);
  if (reading.weight) operands.memory[kWeightOperand] = memory(*reading.weight);
  if (out != nullptr) operands.memory[kOutOperand] = memory(*out);
  return operands;
}

int64_t classes_of(const Reading& reading, const Operands& operands) {
  return reading.per_class ? operands.layout.cls.size : 1;
}

void sums_of(const Reading& reading, const Operands& operands, double* sums) {
  reading.by_pixel() ? pixel_sums(operands, PixelOptions(reading), reading.per_class, sums)
                     : confusion_sums(operands, sums);
}

Tensor confusion(arguments::Data&& data, const arguments::Elements& elements) {
  const Reading reading{std::move(data), elements};
  const Operands operands = operands_of(reading);
  const int64_t samples = operands.layout.sample.size, classes = classes_of(reading, operands);
  Tensor sums = empty({rows_of(reading.extra), samples, classes}, true, reading.input);
  sums_of(reading, operands, static_cast<double*>(sums.mutable_data_ptr()));
  return sums;
}

std::tuple<Tensor, Tensor> confusion_score(arguments::Data&& data,
                                           const arguments::Elements& elements,
                                           const arguments::Scoring& scoring) {
  const Reading reading{std::move(data), elements};
  const Operands operands = operands_of(reading);
  STD_TORCH_CHECK(reading.extra == 0, "customloss: a score is made of four sums");
  const int64_t samples = operands.layout.sample.size, classes = classes_of(reading, operands);
  Tensor coefficients = empty({4, samples, classes}, true, reading.input);
  // The sums lie where the coefficients will: a score reads those of a group before it writes.
  double* sums = static_cast<double*>(coefficients.mutable_data_ptr());
  sums_of(reading, operands, sums);
  Tensor loss = empty_loss(scoring, reading, operands.layout);
  std::vector<double> losses(loss.numel());
  GroupAverage(scoring, samples, classes, sums).run(losses.data());
  store(losses, &loss);
  return {loss, coefficients};
}

Tensor confusion_backward(const arguments::Incoming& incoming, arguments::Data&& data,
                          const arguments::Wrt& by, const arguments::Elements& elements) {
  const Reading reading{std::move(data), elements};
  Tensor out = empty_gradient(reading, by.wrt, gradient_like);
  const Operands operands = operands_of(reading, &out);
  if (by.wrt == Wrt::kWeight) {  // it is like no operand, and so in torch's memory
    prefer_huge_pages(operands.memory[kOutOperand].data,
                      out.numel() * static_cast<int64_t>(out.element_size()));
  }
  const Layout& layout = operands.layout;
  const OuterGrad outer = outer_grad(incoming, reading, layout);
  const double* coefficients = static_cast<const double*>(incoming.coefficients.const_data_ptr());
  if (reading.by_pixel()) {
    pixel_gradient(
        operands, PixelOptions(reading),
        {coefficients, outer, by.wrt, layout.sample.size, layout.cls.size, reading.per_class});
    return out;
  }
  const GroupGrads grads{coefficients, outer, by.wrt, layout.groups(), layout.cls.size};
  const bool wide = operands.memory[kInputOperand].dtype == Dtype::kFloat64;
  if (layout.interleaved()) {
    wide ? interleaved_gradient<double>(operands, grads)
         : interleaved_gradient<float>(operands, grads);
  } else {
    wide ? planar_gradient<double>(operands, grads) : planar_gradient<float>(operands, grads);
  }
  return out;
}

std::string cpu_isa() { return instruction_set().name; }

bool cpu_huge_pages() { return huge_pages_wanted(); }

// The most bytes that are kept of freed gradients, and those that are.
std::tuple<int64_t, int64_t> cpu_gradient_cache() {
  return {gradient_cache_limit(), gradient_cache_bytes()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(customloss, CPU, m) {
  m.impl("confusion", Boxed<&confusion>::call);
  m.impl("confusion_score", Boxed<&confusion_score>::call);
  m.impl("confusion_backward", Boxed<&confusion_backward>::call);
}

STABLE_TORCH_LIBRARY_IMPL(customloss, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", Boxed<&cpu_isa>::call);
  m.impl("cpu_huge_pages", Boxed<&cpu_huge_pages>::call);
  m.impl("cpu_gradient_cache", Boxed<&cpu_gradient_cache>::call);
  m.impl("cpu_empty_gradient_cache", Boxed<&empty_gradient_cache>::call);
}

}  // namespace customloss::cpu
