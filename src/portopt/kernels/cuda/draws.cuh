// Random numbers, as portopt.program.draws defines them: Philox4x32-10 of an element's place, the step and a key.

struct Words {
    unsigned int word[4];
};

// What a parameter's elements are drawn with.
struct Draw {
    unsigned long long key, step;
    unsigned int stream, number;
};

__device__ __forceinline__ Words words_of(const Draw &draw, unsigned long long element)
{
    unsigned int c0 = (unsigned int)element, c1 = (unsigned int)(element >> 32) | draw.stream << 16;
    unsigned int c2 = draw.number, c3 = (unsigned int)draw.step;
    unsigned int k0 = (unsigned int)draw.key, k1 = (unsigned int)(draw.key >> 32);
    for (int pass = 0; pass < 10; pass++) {
        const unsigned int upper_a = __umulhi(0xd2511f53u, c0), lower_a = 0xd2511f53u * c0;
        const unsigned int upper_b = __umulhi(0xcd9e8d57u, c2), lower_b = 0xcd9e8d57u * c2;
        c0 = upper_b ^ c1 ^ k0;
        c1 = lower_b;
        c2 = upper_a ^ c3 ^ k1;
        c3 = lower_a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    const Words words = {{c0, c1, c2, c3}};
    return words;
}

// 53 bits of two words.
__device__ __forceinline__ long long bits_of(unsigned int upper, unsigned int lower)
{
    return (long long)upper << 21 | lower >> 11;
}

__device__ __forceinline__ double fraction_of(long long bits) { return (double)bits * 0x1p-53; }

// The largest number below 1 takes the place of what would round to 1.
__device__ __forceinline__ double uniform_of(const Words &words, long long most)
{
    const long long bits = bits_of(words.word[0], words.word[1]);
    return fraction_of(bits < most ? bits : most);
}
