// Many parameters in one launch: their addresses and sizes travel as an argument, so nothing is copied to the device.
// The elements are cut into chunks, numbered through all parameters; each block takes every gridDim.x-th chunk.

struct Table {
    long long count;
    long long first_chunk[ROWS + 1];
    long long size[ROWS];
    unsigned long long address[ROWS][COLUMNS];
};

// Returns the parameter that a chunk belongs to.
__device__ __forceinline__ int find_row(const Table &table, long long chunk)
{
    int row = 0;
    int beyond = (int)table.count;
    while (beyond - row > 1) {
        const int middle = (row + beyond) / 2;
        if (table.first_chunk[middle] <= chunk)
            row = middle;
        else
            beyond = middle;
    }
    return row;
}
