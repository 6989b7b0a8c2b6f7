// The passes of pixels.cpp, as the operators of confusion.cpp call them.
#pragma once

#include "../arguments.h"

namespace customloss::cpu {

struct Operands;

// The options of a pass that the operands do not tell.
struct PixelOptions {
  bool labels;   // the target holds class numbers
  bool refuses;  // a class number that is neither a class nor ignored is an error
  Ignored ignored;
  bool ignores_nan;  // a target that is NaN does not count
  Smoothing<double> smoothing;
  unsigned extra;
  Focal<double> focal;

  // Whether elements of a dense target may not count.
  bool leaves_out() const { return ignored.count > 0 || ignores_nan; }

  explicit PixelOptions(const Reading& reading)
      : labels(reading.labels()),
        refuses(reading.refuses()),
        ignored(reading.ignored()),
        ignores_nan(reading.ignores_nan()),
        smoothing(reading.smoothing()),
        extra(reading.extra),
        focal{reading.focal_gamma, reading.focal_split} {}
};

// The gradient by the sums: coefficients[rows, samples, classes or 1] times `outer`.
struct PixelGrads {
  const double* coefficients;
  OuterGrad outer;
  Wrt wrt;
  int64_t samples, classes;
  bool per_class;

  double at(int64_t row, int64_t sample, int64_t cls) const {
    const int64_t width = per_class ? classes : 1, column = per_class ? cls : 0;
    return outer.at(sample, column) * coefficients[(row * samples + sample) * width + column];
  }
};

// sums: [rows, samples, classes], or [rows, samples] where the classes are one group.  Throws
// std::invalid_argument, which Python sees as a ValueError, for a class number that the options
// refuse.
void pixel_sums(const Operands& operands, const PixelOptions& options, bool per_class,
                double* sums);

void pixel_gradient(const Operands& operands, const PixelOptions& options, const PixelGrads& grads);

}  // namespace customloss::cpu
