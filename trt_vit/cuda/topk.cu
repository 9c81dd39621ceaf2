// The k largest logits of each image of a batch, best first, and their softmax probabilities.
//
// A class's key is its logit, mapped to an integer of the same order, above its index, inverted: keys are unique, and of
// equal logits the lower index has the larger key. A block finds the k largest keys of one image by radix selection: it
// counts the keys by their leading 8 bits, keeps the bin in which the k-th is, and goes on with the next 8 bits until a bin
// is wanted whole. So the time hardly depends on k. The few that are left are put in order by counting, for each, how many
// are larger.
#include "block.cuh"

#define BINS 256
#define LARGEST_K 1024

struct TopK {
    const void* logits;  // [images][classes]
    unsigned* output;    // [images][1 + 2 k]: 1 if all logits are finite, or 0; k indices; k probabilities, as float's bits
    int classes;
    int k;               // 1 <= k <= classes, LARGEST_K
};

struct Float32 { typedef float Type; static DEVICE_MEMBER float load(float value) { return value; } };

struct Bfloat16 {
    typedef unsigned short Type;
    static DEVICE_MEMBER float load(unsigned short bits) { return as_float(static_cast<unsigned>(bits) << 16); }
};

struct Float16 {
    typedef unsigned short Type;
    static DEVICE_MEMBER float load(unsigned short bits) {
        const unsigned sign = (bits & 0x8000u) << 16, rest = (bits & 0x7FFFu) << 13;
        // The exponent's bias is 15 here and 127 there; the product is exact, and right for subnormal numbers too.
        const float magnitude = rest >= 0x0F800000u ? as_float(rest | 0x7F800000u) : as_float(rest) * 0x1p112f;
        return as_float(as_bits(magnitude) | sign);
    }
};

DEVICE unsigned long long key_of(float logit, int index) {
    const unsigned bits = as_bits(logit + 0.0f);  // -0 and 0 are equal
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(index));
}

DEVICE int index_of(unsigned long long key) { return static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(key)); }

DEVICE float logit_of(unsigned long long key) {
    const unsigned ordered = static_cast<unsigned>(key >> 32);
    return as_float(ordered & 0x80000000u ? ordered & 0x7FFFFFFFu : ~ordered);
}

template <typename Logit>
DEVICE void top_k(const TopK& arguments) {
    SHARED float partial[THREADS];
    SHARED unsigned infinite, taken, bins[BINS];
    SHARED unsigned long long prefix, best[LARGEST_K];
    SHARED int wanted, whole;

    const int classes = arguments.classes, k = arguments.k;
    const typename Logit::Type* logits =
        static_cast<const typename Logit::Type*>(arguments.logits) + static_cast<long long>(blockIdx.x) * classes;
    unsigned* output = arguments.output + static_cast<long long>(blockIdx.x) * (1 + 2 * k);

    // The largest logit, and whether all are finite.
    EACH_THREAD if (threadIdx.x == 0) { infinite = 0; taken = 0; prefix = 0; wanted = k; whole = 0; }
    SYNC;
    EACH_THREAD {
        float largest = as_float(0xFF800000u);
        for (int i = threadIdx.x; i < classes; i += THREADS) {
            const float logit = Logit::load(logits[i]);
            if ((as_bits(logit) & 0x7F800000u) == 0x7F800000u) infinite = 1;
            largest = logit > largest ? logit : largest;
        }
        partial[threadIdx.x] = largest;
    }
    SYNC;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        EACH_THREAD if (threadIdx.x < half && partial[threadIdx.x + half] > partial[threadIdx.x])
            partial[threadIdx.x] = partial[threadIdx.x + half];
        SYNC;
    }
    if (infinite) {
        EACH_THREAD for (int i = threadIdx.x; i < 1 + 2 * k; i += THREADS) output[i] = 0;
        return;
    }
    const float maximum = partial[0];
    SYNC;

    // The sum of exp(logit - maximum), always in the same order.
    EACH_THREAD {
        float sum = 0;
        for (int i = threadIdx.x; i < classes; i += THREADS) sum += exponential(Logit::load(logits[i]) - maximum);
        partial[threadIdx.x] = sum;
    }
    SYNC;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        EACH_THREAD if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        SYNC;
    }

    // The leading bits of the k-th largest key, as many as it takes.
    int shift = 64;
    while (!whole) {
        shift -= 8;
        EACH_THREAD bins[threadIdx.x] = 0;
        SYNC;
        EACH_THREAD for (int i = threadIdx.x; i < classes; i += THREADS) {
            const unsigned long long key = key_of(Logit::load(logits[i]), i);
            if (shift == 56 || key >> (shift + 8) == prefix) atomicAdd(&bins[key >> shift & (BINS - 1)], 1);
        }
        SYNC;
        PER_THREAD(int, above, 1);
        PER_THREAD(int, needed, 1);
        EACH_THREAD {
            OWN(needed)[0] = wanted;
            OWN(above)[0] = 0;
            for (int bin = threadIdx.x + 1; bin < BINS; ++bin) OWN(above)[0] += static_cast<int>(bins[bin]);
        }
        SYNC;
        EACH_THREAD {
            const int rest = OWN(needed)[0] - OWN(above)[0], here = static_cast<int>(bins[threadIdx.x]);
            if (rest > 0 && rest <= here) {  // in this thread's bin, and in no other's
                prefix = prefix << 8 | threadIdx.x;
                wanted = rest;
                whole = rest == here;
            }
        }
        SYNC;
    }

    EACH_THREAD for (int i = threadIdx.x; i < classes; i += THREADS) {
        const unsigned long long key = key_of(Logit::load(logits[i]), i);
        if (key >> shift >= prefix) best[atomicAdd(&taken, 1)] = key;
    }
    SYNC;
    EACH_THREAD for (int i = threadIdx.x; i < k; i += THREADS) {
        int rank = 0;
        for (int other = 0; other < k; ++other) rank += best[other] > best[i];
        output[1 + rank] = static_cast<unsigned>(index_of(best[i]));
        output[1 + k + rank] = as_bits(exponential(logit_of(best[i]) - maximum) / partial[0]);
        if (rank == 0) output[0] = 1;
    }
}

KERNEL(top_k_of_float32, TopK, top_k<Float32>)
KERNEL(top_k_of_float16, TopK, top_k<Float16>)
KERNEL(top_k_of_bfloat16, TopK, top_k<Bfloat16>)
