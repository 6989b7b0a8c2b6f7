// The passes in which the classes of a pixel are read together: which kernel, and its launch.
//
// forward   1  few_sums, tile_sums, element_sums, element_column_sums, or any_stats (of a softmax)
//              and any_sums
//           2  pool_sums, or finish_sums (finish.cuh)
// backward  1  few_gradient, tile_gradient, element_gradient, element_column_gradient, or any_stats
//              (of a softmax) and any_gradient
#include "pixel.h"

#include "../results.h"
#include "pixel_any.cuh"
#include "pixel_element.cuh"
#include "pixel_few.cuh"
#include "pixel_tile.cuh"

namespace customloss::cuda {
namespace {

template <unsigned kFlags>
using Flags = std::integral_constant<unsigned, kFlags>;
template <int kNumber>
using Int = std::integral_constant<int, kNumber>;
template <Activation kActivation>
using Activated = std::integral_constant<Activation, kActivation>;

template <class Body>
void with_input(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat16: return body(Half());
    case Dtype::kBFloat16: return body(BFloat16());
    default: return body(float());
  }
}

// Calls body(In(), Flags()) for the kernels that keep a pixel on the chip.
template <class Body>
void with_choice(const PixelWork& work, const Body& body) {
  with_input(work.px.pass.dtype[kInputOperand], [&](auto in) {
    work.px.extra == 0 ? body(in, Flags<0>()) : body(in, Flags<kLogLoss>());
  });
}

// Calls body(In(), Flags()) for the kernels of elements.
template <class Body>
void with_elements(const PixelWork& work, const Body& body) {
  with_input(work.px.pass.dtype[kInputOperand], [&](auto in) {
    switch (work.px.extra) {
      case 0: return body(in, Flags<0>());
      case kLogLoss: return body(in, Flags<kLogLoss>());
      default: return body(in, Flags<kFocal>());
    }
  });
}

template <class Body>
void with_few(int classes, const Body& body) {
  switch (classes) {
    case 2: return body(Int<2>());
    case 3: return body(Int<3>());
    case 4: return body(Int<4>());
    default: return body(Int<kFewClasses>());
  }
}

// Calls body(classes of a thread, whether in rows).
template <class Body>
void with_tile(const PixelWork& work, const Body& body) {
  if (work.kernel == PixelKernel::kTileRows) {
    body(Int<kTileRow>(), std::true_type());
  } else if (work.px.classes <= kTileSmall) {
    body(Int<kTileSmall>(), std::false_type());
  } else {
    body(Int<kTileLarge>(), std::false_type());
  }
}

// Calls body(T(), Flags()).
template <class Body>
void with_sums(const PixelWork& work, const Body& body) {
  if (work.is_double) {
    work.px.extra == 0 ? body(double(), Flags<0>()) : body(double(), Flags<kEveryExtra>());
  } else if (work.px.extra == 0) {
    body(float(), Flags<0>());
  } else if (work.px.extra == kLogLoss) {
    body(float(), Flags<kLogLoss>());
  } else {
    body(float(), Flags<kEveryExtra>());
  }
}

template <class Body>
void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kSigmoid: return body(Activated<Activation::kSigmoid>());
    case Activation::kNone: return body(Activated<Activation::kNone>());
    default: return body(Activated<Activation::kSoftmax>());
  }
}

int64_t partials_of(const PixelWork& work) {
  return work.parts() > 1 ? rows_of(work.px.extra) * work.groups() * work.parts() : 0;
}

bool needs_stats(const PixelWork& work) {
  return work.kernel == PixelKernel::kAny && work.activation == Activation::kSoftmax;
}

int64_t stats_of(const PixelWork& work) {
  return needs_stats(work) ? kPixelStats * work.px.samples * work.px.pixels : 0;
}

template <bool kGradient, class T, unsigned kExtra>
void launch_stats(const PixelWork& work, const PixelStats<T>& stats, const PixelGrads& grads,
                  const Stream& stream) {
  const int64_t pixels = work.px.samples * work.px.pixels;
  if (!needs_stats(work) || pixels == 0) return;
  launch(any_stats<T, kGradient, kExtra>, ceil_div(pixels, kThreads / work.stats_lanes), kThreads,
         0, stream, work.px, work.stats_lanes, stats, grads);
}

}  // namespace

int64_t pixel_workspace(const PixelWork& work) { return partials_of(work) + stats_of(work); }

void pixel_partial_sums(const PixelWork& work, double* workspace, double* sums, unsigned* ticket,
                        const Stream& stream) {
  const PixelPass& px = work.px;
  const int64_t parts = work.parts();
  const Partials partials{parts > 1 ? workspace : sums, work.groups() * parts, ticket};
  switch (work.kernel) {
    case PixelKernel::kFew:
      return with_choice(work, [&]<class In, class Extra>(In, Extra) {
        with_few(px.classes, [&]<class Classes>(Classes) {
          launch(few_sums<In, Classes::value, Extra::value>, work.blocks(), kThreads, 0, stream, px,
                 work.cut, partials);
        });
      });
    case PixelKernel::kTile:
    case PixelKernel::kTileRows:
      return with_choice(work, [&]<class In, class Extra>(In, Extra) {
        with_tile(work, [&]<class Classes, class Rows>(Classes, Rows) {
          launch(tile_sums<In, Classes::value, Rows::value, Extra::value>, work.blocks(), kThreads,
                 0, stream, px, work.cut, partials);
        });
      });
    case PixelKernel::kElement:
      return with_elements(work, [&]<class In, class Extra>(In, Extra) {
        launch(element_sums<In, Extra::value>, work.blocks(), kThreads, 0, stream, px, work.planar,
               partials);
      });
    case PixelKernel::kElementColumns:
      return with_elements(work, [&]<class In, class Extra>(In, Extra) {
        launch(element_column_sums<In, Extra::value>, work.blocks(), kThreads, 0, stream, px,
               work.columns, partials);
      });
    case PixelKernel::kAny:
      return with_sums(work, [&]<class T, class Extra>(T, Extra) {
        const PixelStats<T> stats{reinterpret_cast<T*>(workspace + partials_of(work)),
                                  px.samples * px.pixels};
        launch_stats<false, T, 0>(work, stats, PixelGrads{}, stream);
        with_activation(work.activation, [&]<class Activated>(Activated) {
          launch(any_sums<T, Activated::value, Extra::value>, work.blocks(), kThreads, 0, stream,
                 px, work.cut, stats, partials);
        });
      });
  }
}

Tensor pixel_confusion(const Reading& reading, const Stream& stream) {
  const Layout layout = reading.layout();
  const int64_t classes = reading.per_class ? layout.cls.size : 1;
  Tensor sums = empty({rows_of(reading.extra), layout.sample.size, classes}, true, reading.input);
  if (layout.groups() == 0) {
    torch::stable::zero_(sums);
    return sums;
  }
  const PixelWork work = plan_pixels(reading, layout, nullptr, Wrt::kInput);
  Tensor workspace = empty({pixel_workspace(work)}, true, reading.input);
  double* const partials = static_cast<double*>(workspace.mutable_data_ptr());
  double* const to = static_cast<double*>(sums.mutable_data_ptr());
  pixel_partial_sums(work, partials, to, nullptr, stream);
  const int64_t parts = work.parts(), count = rows_of(reading.extra) * work.groups();
  if (parts > 1) {
    const int lanes = static_cast<int>(power_of_two(parts, kWarp));
    launch(pool_sums, ceil_div(count, kThreads / lanes), kThreads, 0, stream,
           static_cast<const double*>(partials), to, count, parts, lanes);
  }
  return sums;
}

Tensor pixel_backward(const arguments::Incoming& incoming, const Reading& reading, Wrt wrt,
                      const Stream& stream) {
  STD_TORCH_CHECK(wrt != Wrt::kTarget || !reading.labels(),
                  "customloss: class numbers have no gradient");
  Tensor out = empty_gradient(reading, wrt);
  if (reading.input.numel() == 0) return out;
  const Layout layout = reading.layout(&out);
  const OuterGrad outer = outer_grad(incoming, reading, layout);
  const int64_t classes = reading.per_class ? layout.cls.size : 1;
  const PixelGrads grads{static_cast<const double*>(incoming.coefficients.const_data_ptr()), outer,
                         layout.sample.size * classes, classes};
  const PixelWork work = plan_pixels(reading, layout, &out, wrt);
  switch (work.kernel) {
    case PixelKernel::kFew:
      with_choice(work, [&]<class In, class Extra>(In, Extra) {
        with_few(work.px.classes, [&]<class Classes>(Classes) {
          launch(few_gradient<In, Classes::value, Extra::value>, work.blocks(), kThreads, 0, stream,
                 work.px, work.cut, grads);
        });
      });
      break;
    case PixelKernel::kTile:
    case PixelKernel::kTileRows:
      with_choice(work, [&]<class In, class Extra>(In, Extra) {
        with_tile(work, [&]<class Classes, class Rows>(Classes, Rows) {
          launch(tile_gradient<In, Classes::value, Rows::value, Extra::value>, work.blocks(),
                 kThreads, 0, stream, work.px, work.cut, grads);
        });
      });
      break;
    case PixelKernel::kElement:
      with_elements(work, [&]<class In, class Extra>(In, Extra) {
        launch(element_gradient<In, Extra::value>, work.blocks(), kThreads, 0, stream, work.px,
               work.planar, grads);
      });
      break;
    case PixelKernel::kElementColumns:
      with_elements(work, [&]<class In, class Extra>(In, Extra) {
        launch(element_column_gradient<In, Extra::value>, work.blocks(), kThreads, 0, stream,
               work.px, work.columns, grads);
      });
      break;
    case PixelKernel::kAny: {
      Tensor workspace = empty({stats_of(work)}, true, reading.input);
      with_sums(work, [&]<class T, class Extra>(T, Extra) {
        const PixelStats<T> stats{static_cast<T*>(workspace.mutable_data_ptr()),
                                  work.px.samples * work.px.pixels};
        if (wrt == Wrt::kInput) {
          launch_stats<true, T, Extra::value>(work, stats, grads, stream);
        } else {
          launch_stats<false, T, 0>(work, stats, grads, stream);
        }
        with_activation(work.activation, [&]<class Activated>(Activated) {
          launch(any_gradient<T, Activated::value, Extra::value>, work.blocks(), kThreads, 0,
                 stream, work.px, work.cut, stats, grads, wrt);
        });
      });
    }
  }
  return out;
}

}  // namespace customloss::cuda
