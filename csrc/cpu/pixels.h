// The passes of pixels.cpp, as the operators of confusion.cpp call them.
#pragma once

#include "../arguments.h"

namespace customloss::cpu {

struct Operands;

// The options of a pass that the operands do not tell.
struct PixelOptions {
  bool labels;  // the target holds class numbers
  bool ignores;
  int64_t ignored;
  Smoothing<double> smoothing;
  unsigned extra;
  Focal<double> focal;

  explicit PixelOptions(const Reading& reading)
      : labels(reading.labels()),
        ignores(reading.ignore_index.has_value()),
        ignored(reading.ignore_index.value_or(0)),
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

// sums: [rows, samples, classes], or [rows, samples] where the classes are one group.
void pixel_sums(const Operands& operands, const PixelOptions& options, bool per_class,
                double* sums);

void pixel_gradient(const Operands& operands, const PixelOptions& options, const PixelGrads& grads);

}  // namespace customloss::cpu
