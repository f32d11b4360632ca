// Many parameters in one launch: their addresses and sizes travel as an argument, so nothing is copied to the device.
// The elements are cut into chunks, numbered through all parameters; each block takes every gridDim.x-th chunk.

struct Table {
    long long first_chunk[ROWS + 1];  // after the last parameter's: the number of all chunks, to the end
    long long size[ROWS];
    unsigned long long address[ROWS][COLUMNS];
};

// Returns the parameter that a chunk belongs to. FIRST_STEP is the largest power of two up to ROWS.
__device__ __forceinline__ int find_row(const Table &table, long long chunk)
{
    int row = 0;
    for (int step = FIRST_STEP; step > 0; step /= 2)
        if (row + step < ROWS && table.first_chunk[row + step] <= chunk)
            row += step;
    return row;
}
