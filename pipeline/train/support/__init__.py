"""The output head at the ids of a support: `head` is what the trainer calls, the others are how it computes.

    index       where each id occurs
    paths       which of the following runs, by device and shape
    csr         a CPU: sampled products and weighted bags of rows
    gemm        a GPU: dense products over the distinct ids of a chunk
    kernels     a GPU: fused Triton kernels that gather
    hybrid      a GPU: frequent ids by gemm, the others by kernels
    products    matrix products in bfloat16 with float32 sums
"""
