// The passes in which the classes of a pixel are read together, as the operators call them.
#pragma once

#include "pixel_plan.h"

namespace customloss::cuda {

// Doubles that a forward pass needs beside the sums.
int64_t pixel_workspace(const PixelWork& work);

// Partial sums[rows][sample][class][unit] at the start of `workspace`; the sums themselves in
// `sums` where a group is one part.  Clears `ticket`, if there is one.
void pixel_partial_sums(const PixelWork& work, double* workspace, double* sums, unsigned* ticket,
                        const Stream& stream);

// As the operators `confusion` and `confusion_backward`.
Tensor pixel_confusion(const Reading& reading, const Stream& stream);
Tensor pixel_backward(const arguments::Incoming& incoming, const Reading& reading, Wrt wrt,
                      const Stream& stream);

}  // namespace customloss::cuda
