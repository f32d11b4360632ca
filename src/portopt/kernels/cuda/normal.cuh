// Normally distributed numbers as portopt.program.draws defines them, in float64, of which GPUs do little at a time. A float32
// number needs no more than a near one, unless that one is near the middle between two float32 numbers.

__device__ __forceinline__ double normal_of(const Words &words)
{
    const double length = fraction_of(bits_of(words.word[0], words.word[1]) + 1);
    const double angle = fraction_of(bits_of(words.word[2], words.word[3]));
    const double radius = square_root(product(log_of_float64(length), -2.0));
    return product(radius, cos_of_float64(product(angle, 0x1.921fb54442d18p+2)));
}

__device__ __noinline__ float rounded_normal_of(
    unsigned long long key, unsigned long long step, unsigned int stream, unsigned int number, unsigned long long element)
{
    const Draw draw = {key, step, stream, number};
    return float64_to_float32(normal_of(words_of(draw, element)));
}

__device__ __forceinline__ bool needs_more(double near, const Words &words)
{
    // The bits that a float32 number does not have, as units of 2^-52 of a magnitude below 2.
    const unsigned int rest = (unsigned int)__double_as_longlong(near) & 0x1fffffffu, most_off = 2 * MOST_OFF * 0x1p52;
    return rest - (0x10000000u - most_off) <= 2 * most_off || words.word[0] == 0xffffffffu;
}

__device__ __forceinline__ double float64_normal_at(const Draw &draw, unsigned long long element)
{
    return normal_of(words_of(draw, element));
}

__device__ __forceinline__ float float32_normal_at(const Draw &draw, unsigned long long element)
{
    const Words words = words_of(draw, element);
    const double near = near_normal_of(words);
    if (needs_more(near, words))
        return rounded_normal_of(draw.key, draw.step, draw.stream, draw.number, element);
    return (float)near;
}

// Those of four elements; the compiler mixes what it does for one with what it does for the others.
__device__ __forceinline__ Four<float> four_normals_at(const Draw &draw, unsigned long long element, unsigned long long beside)
{
    Four<float> found;
    unsigned int unknown = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const Words words = words_of(draw, element + k * beside);
        const double near = near_normal_of(words);
        found.at[k] = (float)near;
        unknown |= (unsigned int)needs_more(near, words) << k;
    }
    if (unknown)
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (unknown >> k & 1)
                found.at[k] = rounded_normal_of(draw.key, draw.step, draw.stream, draw.number, element + k * beside);
    return found;
}
