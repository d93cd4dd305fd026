// The elementwise operators of the CPU backend.
#pragma once

#include "engine/api/backend.h"

namespace sage::cpu {

const Kernels& CpuKernels();

}  // namespace sage::cpu
