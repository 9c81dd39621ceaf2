// Resize, crop and normalise a batch of images of different sizes, bit for bit as Pillow and a table do on the CPU.
//
// Pillow resizes in two passes of 8-bit pixels: each value of a pass is a sum of neighbours along one axis, weighted by
// integers of 22 fraction bits, rounded, and clamped to 0..255. So all arithmetic here is integer too. The weights come
// from the host, which computes them as Pillow does; a crop takes part of them, and nearest is one weight of 1.
//
// A block makes one tile of one image, in one kernel, with the values between the passes in shared memory only: it walks
// along the second pass's axis through what the tile needs of the source, a chunk at a time; the first pass fills the
// chunk, the second adds it to its sums. Whatever the scale, source pixels are read once but for the tiles' borders.
#include "block.cuh"

#define TILE 32   // pixels of a side of a tile
#define CHUNK 64  // source pixels along the second axis that are between the passes at a time
#define PIXELS (TILE * TILE / THREADS)
#define FRACTION_BITS 22
#define ROUND (1 << (FRACTION_BITS - 1))

// How the pixels [target, target + length) of one axis of the output come from the source. At `table` there are int32
// start[length], count[length] and weights[taps][length]: output i is the sum of source[start + t] * weights[t][i] over
// t < count. Starts, and their ends, do not decrease.
struct Axis {
    int table;
    int target;
    int length;
};

struct Source {
    const unsigned char* pixels;  // RGB, 3 bytes a pixel
    long long pitch;              // bytes from row to row
    Axis x, y;
    int vertical_first;           // which pass comes first
    int unused;
};

struct Preprocess {
    const Source* sources;  // one for each row of blocks
    const int* tables;
    const void* values;     // what each 8-bit value becomes: words [3][256] of the output's type
    void* output;           // words [images][3][height][width]
    int height;
    int width;
};

DEVICE int clamp8(int sum) { return smaller(larger(sum >> FRACTION_BITS, 0), 255); }

// The part of a tile that has a source along one axis, as indices into the axis's table.
struct Part {
    const int* table;
    int length;    // of the table
    int first;     // index of the part's first pixel
    int count;     // pixels of the part; none or fewer than none where all of it is padding
    int offset;    // from a pixel of the tile to its index
    DEVICE_MEMBER int start(int index) const { return table[index]; }
    DEVICE_MEMBER int taps(int index) const { return table[length + index]; }
    DEVICE_MEMBER int weight(int tap, int index) const { return table[(2 + tap) * length + index]; }
};

DEVICE Part part_of(const Axis& axis, const int* tables, int origin) {
    const int offset = origin - axis.target;
    const int first = larger(offset, 0);
    return {tables + axis.table, axis.length, first, smaller(offset + TILE, axis.length) - first, offset};
}

template <typename Word, bool VERTICAL_FIRST>
DEVICE void make_tile(const Preprocess& arguments, const Source& source, int left, int top) {
    SHARED unsigned char between[CHUNK][TILE][3];
    PER_THREAD(int, sums, PIXELS * 3);

    const Part x = part_of(source.x, arguments.tables, left), y = part_of(source.y, arguments.tables, top);
    const Part& first = VERTICAL_FIRST ? y : x;
    const Part& second = VERTICAL_FIRST ? x : y;
    const bool padding = first.count <= 0 || second.count <= 0;
    const int last = second.first + second.count - 1;
    const int begin = padding ? 0 : second.start(second.first);
    const int end = padding ? 0 : second.start(last) + second.taps(last);
    // Bytes from a source pixel to the next one, along the axis of each pass.
    const long long step = VERTICAL_FIRST ? source.pitch : 3;
    const long long stride = VERTICAL_FIRST ? 3 : source.pitch;

    EACH_THREAD for (int i = 0; i < PIXELS * 3; ++i) OWN(sums)[i] = ROUND;

    for (int chunk = begin; chunk < end; chunk += CHUNK) {
        const int size = smaller(CHUNK, end - chunk);
        EACH_THREAD for (int item = threadIdx.x; item < size * TILE; item += THREADS) {
            // Neighbouring threads read neighbouring pixels of a row, whichever axis that is.
            const int a = VERTICAL_FIRST ? item / size : item % TILE;
            const int b = VERTICAL_FIRST ? item % size : item / TILE;
            if (a >= first.count) continue;
            const int index = first.first + a;
            const unsigned char* pixel = source.pixels + first.start(index) * step + (chunk + b) * stride;
            int red = ROUND, green = ROUND, blue = ROUND;
            for (int tap = 0; tap < first.taps(index); ++tap, pixel += step) {
                const int weight = first.weight(tap, index);
                red += weight * pixel[0];
                green += weight * pixel[1];
                blue += weight * pixel[2];
            }
            between[b][a][0] = static_cast<unsigned char>(clamp8(red));
            between[b][a][1] = static_cast<unsigned char>(clamp8(green));
            between[b][a][2] = static_cast<unsigned char>(clamp8(blue));
        }
        SYNC;
        EACH_THREAD for (int i = 0; i < PIXELS; ++i) {
            const int column = threadIdx.x % TILE, row = (threadIdx.x + i * THREADS) / TILE;
            const int a = (VERTICAL_FIRST ? row : column) + first.offset - first.first;
            const int index = (VERTICAL_FIRST ? column : row) + second.offset;
            if (a < 0 || a >= first.count || index < second.first || index > last) continue;
            const int start = second.start(index);
            const int stop = smaller(start + second.taps(index), chunk + size);
            for (int at = larger(start, chunk); at < stop; ++at) {
                const int weight = second.weight(at - start, index);
                for (int channel = 0; channel < 3; ++channel)
                    OWN(sums)[i * 3 + channel] += weight * between[at - chunk][a][channel];
            }
        }
        SYNC;
    }

    const Word* values = static_cast<const Word*>(arguments.values);
    Word* output = static_cast<Word*>(arguments.output);
    EACH_THREAD for (int i = 0; i < PIXELS; ++i) {
        const int column = left + threadIdx.x % TILE, row = top + (threadIdx.x + i * THREADS) / TILE;
        if (column >= arguments.width || row >= arguments.height) continue;
        for (int channel = 0; channel < 3; ++channel) {
            // A sum that nothing was added to is 0: so padding is, before it is normalised.
            const int value = clamp8(OWN(sums)[i * 3 + channel]);
            const long long plane = static_cast<long long>(blockIdx.y) * 3 + channel;
            output[(plane * arguments.height + row) * arguments.width + column] = values[channel * 256 + value];
        }
    }
}

template <typename Word>
DEVICE void preprocess(const Preprocess& arguments) {
    const int tiles = (arguments.width + TILE - 1) / TILE;
    const int left = static_cast<int>(blockIdx.x) % tiles * TILE, top = static_cast<int>(blockIdx.x) / tiles * TILE;
    const Source& source = arguments.sources[blockIdx.y];
    if (source.vertical_first) {
        make_tile<Word, true>(arguments, source, left, top);
    } else {
        make_tile<Word, false>(arguments, source, left, top);
    }
}

KERNEL(preprocess_to_32_bits, Preprocess, preprocess<unsigned>)
KERNEL(preprocess_to_16_bits, Preprocess, preprocess<unsigned short>)
