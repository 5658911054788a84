// Norm, ReLU and pooling, forward and backward, for kernels_impl.h, which includes this and whose
// rules hold here too. The compiler makes vectors of the loops over channels.

namespace trajsyn {
namespace {

// The norm of a chunk of channels as y = (z - mean) * factor + shift; without norm y = z.
struct Norm {
  float mean[kChunk], factor[kChunk], shift[kChunk];

  float operator()(float z, int c) const { return (z - mean[c]) * factor[c] + shift[c]; }
};

Norm norm_of(const Activation& shape, int first, int count, const float* mean,
             const float* inverse) {
  Norm norm;
  for (int c = 0; c < count; ++c) {
    norm.mean[c] = shape.scale != nullptr ? mean[c] : 0;
    norm.factor[c] = shape.scale != nullptr ? inverse[c] * shape.scale[first + c] : 1;
    norm.shift[c] = shape.scale != nullptr ? shape.shift[first + c] : 0;
  }
  return norm;
}

// Sums over pixels, line by line so that rounding errors do not grow with the image.
template <typename Term>
void sum_pixels(const Activation& shape, int count, float* sums, Term term) {
  for (int c = 0; c < count; ++c) sums[c] = 0;
  for (int y = 0; y < shape.height; ++y) {
    float line[kChunk] = {};
    for (int x = 0; x < shape.width; ++x) {
      const ptrdiff_t at = (static_cast<ptrdiff_t>(y) * shape.width + x) * shape.channels;
      for (int c = 0; c < count; ++c) line[c] += term(at, c);
    }
    for (int c = 0; c < count; ++c) sums[c] += line[c];
  }
}

void activate(const Activation& shape, const float* z_image, int first, int count, float* y_image,
              float* mean, float* inverse) {
  const float* __restrict z = z_image + first;
  float* __restrict y = y_image + first;
  const ptrdiff_t channels = shape.channels;
  if (shape.scale != nullptr) {
    const float pixels = static_cast<float>(shape.height) * static_cast<float>(shape.width);
    float sums[kChunk], means[kChunk];
    sum_pixels(shape, count, sums, [&](ptrdiff_t at, int c) { return z[at + c]; });
    for (int c = 0; c < count; ++c) means[c] = sums[c] / pixels;
    sum_pixels(shape, count, sums, [&](ptrdiff_t at, int c) {
      const float centred = z[at + c] - means[c];
      return centred * centred;
    });
    for (int c = 0; c < count; ++c) {
      mean[c] = means[c];
      inverse[c] = 1 / __builtin_sqrtf(sums[c] / pixels + shape.epsilon);
    }
  }
  const Norm norm = norm_of(shape, first, count, mean, inverse);
  const float floor = shape.relu ? 0 : -__builtin_inff();
  const int size = shape.pool == kNoPool ? 1 : shape.pool_size;
  const float share = shape.pool == kAveragePool ? 1.0f / static_cast<float>(size * size) : 1;
  for (int i = 0; i < shape.pooled_height(); ++i) {
    for (int j = 0; j < shape.pooled_width(); ++j) {
      float values[kChunk];
      for (int di = 0; di < size; ++di) {
        for (int dj = 0; dj < size; ++dj) {
          const float* from =
              z + (static_cast<ptrdiff_t>(i * size + di) * shape.width + j * size + dj) * channels;
          if (di + dj == 0) {
            for (int c = 0; c < count; ++c) {
              const float h = norm(from[c], c);
              values[c] = h < floor ? floor : h;  // NaN passes, as in torch
            }
          } else if (shape.pool == kAveragePool) {
            for (int c = 0; c < count; ++c) {
              const float h = norm(from[c], c);
              values[c] += h < floor ? floor : h;
            }
          } else {
            for (int c = 0; c < count; ++c) {
              const float h = norm(from[c], c);
              values[c] = h <= values[c] || values[c] != values[c] ? values[c] : h;
            }
          }
        }
      }
      float* to = y + (static_cast<ptrdiff_t>(i) * shape.pooled_width() + j) * channels;
      for (int c = 0; c < count; ++c) to[c] = values[c] * share;
    }
  }
}

// Sums over an image of dh and of dh * (z - mean), by channel, where dh is the norm's gradient.
struct Sums {
  float total[kChunk], correlation[kChunk];
};

// dh of one pixel from `dy`, the gradient that its window hands to it; adds to `sums`.
inline void relu_backward(const Norm& norm, float floor, float share, const float* __restrict dy,
                          const float* __restrict z, int count, float* __restrict dh,
                          Sums& __restrict sums) {
  for (int c = 0; c < count; ++c) {
    const float centred = z[c] - norm.mean[c];
    const float passed = dy[c] * share;
    const float gradient = centred * norm.factor[c] + norm.shift[c] > floor ? passed : 0;
    dh[c] = gradient;
    sums.total[c] += gradient;
    sums.correlation[c] += gradient * centred;
  }
}

// The gradient of one window goes to its largest value: to the first of equals, as in torch.
void max_pool_backward(const Activation& shape, const Norm& norm, const float* dy, const float* z,
                       int count, float* dh, Sums& sums) {
  float best[kChunk];
  int winner[kChunk];
  for (int k = 0; k < shape.pool_size * shape.pool_size; ++k) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(k / shape.pool_size * shape.width +
                                                k % shape.pool_size) * shape.channels;
    for (int c = 0; c < count; ++c) {
      const float h = norm(z[at + c], c);
      const bool larger = k == 0 || h > best[c];
      winner[c] = larger ? k : winner[c];
      best[c] = larger ? h : best[c];
    }
  }
  for (int k = 0; k < shape.pool_size * shape.pool_size; ++k) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(k / shape.pool_size * shape.width +
                                                k % shape.pool_size) * shape.channels;
    for (int c = 0; c < count; ++c) {
      const float gradient = winner[c] == k && (!shape.relu || best[c] > 0) ? dy[c] : 0;
      dh[at + c] = gradient;
      sums.total[c] += gradient;
      sums.correlation[c] += gradient * (z[at + c] - norm.mean[c]);
    }
  }
}

// Writes dh through pooling and ReLU and returns its sums, taken line by line.
Sums unpool(const Activation& shape, const Norm& norm, const float* dy, const float* z, int count,
            float* dh) {
  const ptrdiff_t channels = shape.channels;
  const float floor = shape.relu ? 0 : -__builtin_inff();
  const int size = shape.pool == kNoPool ? 1 : shape.pool_size;
  const float share = shape.pool == kAveragePool ? 1.0f / static_cast<float>(size * size) : 1;
  Sums sums{};
  for (int i = 0; i < shape.pooled_height(); ++i) {
    Sums line{};
    for (int j = 0; j < shape.pooled_width(); ++j) {
      const float* from = dy + (static_cast<ptrdiff_t>(i) * shape.pooled_width() + j) * channels;
      const ptrdiff_t corner = static_cast<ptrdiff_t>(i) * size * shape.width + j * size;
      if (shape.pool == kMaxPool) {
        max_pool_backward(shape, norm, from, z + corner * channels, count, dh + corner * channels,
                          line);
        continue;
      }
      for (int di = 0; di < size; ++di) {
        for (int dj = 0; dj < size; ++dj) {
          const ptrdiff_t at = (corner + di * shape.width + dj) * channels;
          relu_backward(norm, floor, share, from, z + at, count, dh + at, line);
        }
      }
    }
    for (int c = 0; c < count; ++c) {
      sums.total[c] += line.total[c];
      sums.correlation[c] += line.correlation[c];
    }
  }
  // Pixels that floor division leaves out of every window.
  for (int i = 0; i < shape.height; ++i) {
    const int begin = i < shape.pooled_height() * size ? shape.pooled_width() * size : 0;
    for (int j = begin; j < shape.width; ++j) {
      const ptrdiff_t at = (static_cast<ptrdiff_t>(i) * shape.width + j) * channels;
      for (int c = 0; c < count; ++c) dh[at + c] = 0;
    }
  }
  return sums;
}

void activate_backward(const Activation& shape, const float* dy, const float* z_image, int first,
                       int count, const float* mean, const float* inverse, float* dz_image,
                       float* dscale, float* dshift) {
  const float* __restrict z = z_image + first;
  float* __restrict dz = dz_image + first;
  const Norm norm = norm_of(shape, first, count, mean, inverse);
  const Sums sums = unpool(shape, norm, dy + first, z, count, dz);
  if (shape.scale == nullptr) return;

  const float pixels = static_cast<float>(shape.height) * static_cast<float>(shape.width);
  float average[kChunk], slope[kChunk];
  for (int c = 0; c < count; ++c) {
    dscale[c] = sums.correlation[c] * inverse[c];
    dshift[c] = sums.total[c];
    average[c] = sums.total[c] / pixels;
    slope[c] = norm.factor[c] * inverse[c] * inverse[c] * (sums.correlation[c] / pixels);
  }
  for (ptrdiff_t pixel = 0; pixel < static_cast<ptrdiff_t>(shape.height) * shape.width; ++pixel) {
    const ptrdiff_t at = pixel * shape.channels;
    for (int c = 0; c < count; ++c) {
      dz[at + c] =
          (dz[at + c] - average[c]) * norm.factor[c] - (z[at + c] - norm.mean[c]) * slope[c];
    }
  }
}

}  // namespace
}  // namespace trajsyn
