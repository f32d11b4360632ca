// Many parameters in one launch: what is known of them lies in the device's memory, and the launch is told where.
// The elements are cut into chunks, numbered through all parameters; there is a block for each, or a block takes every gridDim.x-th.

struct Table {
    const long long *first_chunk;  // of each parameter, and after the last one's the number of all chunks
    const long long *size;  // the number of elements of each parameter
    const int *row;  // the parameter that each chunk is of
    const unsigned long long *address;  // column c of parameter r stands at c * rows + r
    long long rows;
    long long chunks;
};

__device__ __forceinline__ int row_of(const Table &table, long long chunk) { return table.row[chunk]; }
__device__ __forceinline__ long long first_chunk_of(const Table &table, int row) { return table.first_chunk[row]; }
__device__ __forceinline__ long long elements_of(const Table &table, int row) { return table.size[row]; }
__device__ __forceinline__ unsigned long long address_of(const Table &table, int column, int row)
{
    return table.address[column * table.rows + row];
}
