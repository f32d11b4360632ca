// Few parameters in one launch: what is known of them is among its arguments; see table.cuh.

struct Table {
    long long rows;
    long long chunks;
    long long words[WORDS];  // the first chunk of each parameter, and the number of all, then the sizes, then the addresses
};

__device__ __forceinline__ int row_of(const Table &table, long long chunk)
{
    // The last one that begins no later; those without elements begin where the next one does.
    int low = 0, high = (int)table.rows;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table.words[middle] <= chunk)
            low = middle;
        else
            high = middle;
    }
    return low;
}

__device__ __forceinline__ long long first_chunk_of(const Table &table, int row) { return table.words[row]; }
__device__ __forceinline__ long long elements_of(const Table &table, int row) { return table.words[table.rows + 1 + row]; }
__device__ __forceinline__ unsigned long long address_of(const Table &table, int column, int row)
{
    return (unsigned long long)table.words[(column + 2) * table.rows + 1 + row];
}
