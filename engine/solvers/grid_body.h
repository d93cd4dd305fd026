// The loops of one tier; grid_kernels.cc includes this once a tier, inside the tier's namespace, with SAGE_LANE_TARGET
// set to the attribute of the tier. No include guard, for that reason. Plain loops over kGridLanes values: the compiler
// makes vectors of them.

SAGE_LANE_TARGET double SquaredError(const float* weights, const float* importance, int64_t count,
                                     const IntegerGrid& grid, int bits, double bound) {
  const float scale = grid.scale, zero = static_cast<float>(grid.zero);
  const float low = static_cast<float>(MinCode(bits)), high = static_cast<float>(MaxCode(bits));
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kCheckEvery) {
    const int64_t end = begin + kCheckEvery < count ? begin + kCheckEvery : count;
    float sums[kGridLanes] = {};
    for (int64_t i = begin; i < end; i += kGridLanes) {
      float w[kGridLanes] = {}, share[kGridLanes] = {};  // nothing where the group has ended
      const int64_t lanes = end - i < kGridLanes ? end - i : kGridLanes;
      if (lanes == kGridLanes) {
        for (int64_t lane = 0; lane < kGridLanes; ++lane) w[lane] = weights[i + lane];
        for (int64_t lane = 0; lane < kGridLanes; ++lane)
          share[lane] = importance == nullptr ? 1 : importance[i + lane];
      } else {
        for (int64_t lane = 0; lane < lanes; ++lane) w[lane] = weights[i + lane];
        for (int64_t lane = 0; lane < lanes; ++lane) share[lane] = importance == nullptr ? 1 : importance[i + lane];
      }
      for (int64_t lane = 0; lane < kGridLanes; ++lane) {
        float position = w[lane] / scale + zero;
        position = position < low ? low : position;
        position = position > high ? high : position;
        const float off = w[lane] - (static_cast<float>(RoundHalfEven(position)) - zero) * scale;
        sums[lane] += off * off * share[lane];
      }
    }
    for (const float sum : sums) total += static_cast<double>(sum);
    if (total > bound) return total;
  }
  return total;
}

SAGE_LANE_TARGET int64_t NextMove(const CodeRow& row, int64_t begin, int64_t count, int bits, int8_t* code) {
  const float low = static_cast<float>(MinCode(bits)), high = static_cast<float>(MaxCode(bits));
  for (int64_t block = begin / kGridLanes * kGridLanes; block < count; block += kGridLanes) {
    const float *value = row.value + block, *scale = row.scale + block, *zero = row.zero + block;
    const float *energy = row.energy + block, *gradient = row.gradient + block;
    int32_t wants[kGridLanes], codes[kGridLanes];
    for (int64_t lane = 0; lane < kGridLanes; ++lane) {
      const float wanted = value[lane] - gradient[lane] / energy[lane];
      const int32_t usable = static_cast<int32_t>(energy[lane] > 0) & static_cast<int32_t>(wanted <= kLargestFloat) &
                             static_cast<int32_t>(wanted >= -kLargestFloat);
      float position = (usable != 0 ? wanted : 0.0f) / scale[lane] + zero[lane];
      position = position < low ? low : position;
      position = position > high ? high : position;
      codes[lane] = RoundHalfEven(position);
      const float step = (static_cast<float>(codes[lane]) - zero[lane]) * scale[lane] - value[lane];
      // Only a step that lowers the loss beyond rounding: no code goes back and forth.
      wants[lane] = usable & static_cast<int32_t>(step * (2.0f * gradient[lane] + step * energy[lane]) < 0);
    }
    int32_t any = 0;
    for (int64_t lane = 0; lane < kGridLanes; ++lane) any |= wants[lane];
    if (any == 0) continue;
    for (int64_t lane = block < begin ? begin - block : 0; lane < kGridLanes && block + lane < count; ++lane) {
      if (wants[lane] == 0) continue;
      *code = static_cast<int8_t>(codes[lane]);
      return block + lane;
    }
  }
  return count;
}
