__device__ __forceinline__ double normal_of(const Words &words)
{
    const double length = fraction_of(bits_of(words.word[0], words.word[1]) + 1);
    const double angle = fraction_of(bits_of(words.word[2], words.word[3]));
    const double radius = square_root(product(log_of_float64(length), -2.0));
    return product(radius, cos_of_float64(product(angle, 0x1.921fb54442d18p+2)));
}
